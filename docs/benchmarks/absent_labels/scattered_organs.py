"""A long phantom of forty scattered organs, of which every tile holds few, and the time it takes to predict them.

    python scattered_organs.py data      # writes nnUNet_raw/Dataset950_ScatteredOrgans
    nnUNetv2_plan_and_preprocess -d 950 -c 3d_fullres
    python scattered_organs.py plans     # adds the configuration `scattered` to its plans
    python scattered_organs.py tile      # without training: one tile, while a chosen number of labels stay
    nnUNetv2_train 950 scattered 0 -tr ConditionalFiLMTrainer_Adam1en3_NoMirroring_5epochs -device cpu
    python scattered_organs.py time      # stock network, exact and skipping, in turn: times.csv

An organ is an ellipsoid with a signal of its own in three channels, its place along the axis is that of its number.
Arrays are [z, y, x].
"""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import SimpleITK
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_conemos.doorway import register_trainers
from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.inference.model_folder import planned_network, read_model
from nnunetv2_conemos.inference.predictor import Inference, make_predictor
from nnunetv2_conemos.networks.spec import PLANS_KEY, RECORDED
from nnunetv2_conemos.text_files import read_object

NAME, CONFIGURATION = "Dataset950_ScatteredOrgans", "scattered"
TRAINER = "ConditionalFiLMTrainer_Adam1en3_NoMirroring_5epochs"
ORGANS, APART = 40, 12  # number; distance of two neighbours along the axis, in voxels
SHAPE, PATCH = (ORGANS * APART, 32, 32), (32, 32, 32)
LEVELS = (1.0, 2.0, 3.0, 4.0)  # of the signal of a channel: 4 to the power of 3 organs can be told apart
PRESENT, NOISE = 0.8, 0.25
CASES = {"Tr": 16, "Ts": 4}
FEATURES = (8, 16, 32, 64, 128)
STAY, ROUNDS = (40, 12, 8, 4, 0), 8
LAST_LAYERS = 9  # the eight convolutions of the decoder, and the logits: the encoder runs once for all labels


def make_case(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Make the three channels [3, *SHAPE] and the label map [*SHAPE] of a case."""
    label_map = np.zeros(SHAPE, np.uint8)
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    for organ in range(ORGANS):
        radii = rng.uniform(3.5, 6, 3)
        side = 16 + np.array([-6, 6])[[organ % 2, organ // 2 % 2]]
        centre = np.array([(organ + 0.5) * APART, *side]) + rng.uniform(-2, 2, 3)
        inside = np.square((grid - centre.reshape(3, 1, 1, 1)) / radii.reshape(3, 1, 1, 1)).sum(0) < 1
        if rng.random() < PRESENT:
            label_map[inside] = organ + 1
    image = signals()[:, label_map] + rng.normal(0, NOISE, (3, *SHAPE))
    return image.astype(np.float32), label_map


def signals() -> np.ndarray:
    """Return the signal of background (0) and of each organ in the three channels, [3, 1 + ORGANS]."""
    codes = np.array([(a, b, c) for a in LEVELS for b in LEVELS for c in LEVELS])
    chosen = np.random.default_rng(0).permutation(len(codes))[:ORGANS]
    return np.vstack((np.zeros(3), codes[chosen])).T


def write_data() -> None:
    """Write the raw dataset."""
    folder, rng = Path(nnUNet_raw) / NAME, np.random.default_rng(1)
    for part, number in CASES.items():
        for sort in ("images", "labels"):
            (folder / f"{sort}{part}").mkdir(parents=True)
        for case in range(number):
            image, label_map = make_case(rng)
            name = f"{part.lower()}_{case:02d}"
            for channel, array in enumerate(image):
                write(folder / f"images{part}" / f"{name}_{channel:04d}.nii.gz", array)
            write(folder / f"labels{part}" / f"{name}.nii.gz", label_map)
    labels = {"background": 0, **{f"organ_{number:02d}": number for number in range(1, ORGANS + 1)}}
    channels = {str(channel): "MRI" for channel in range(3)}
    about = {"channel_names": channels, "labels": labels, "numTraining": CASES["Tr"], "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", about)


def write(file: Path, array: np.ndarray) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(file))


def write_plans() -> None:
    """Add a configuration with a small network of five stages, trained on cubes, to the plans of the dataset."""
    file = Path(nnUNet_preprocessed) / NAME / "nnUNetPlans.json"
    plans = read_object(file)
    architecture = dict(plans["configurations"]["3d_fullres"]["architecture"])
    stages = len(FEATURES)
    architecture["arch_kwargs"] = architecture["arch_kwargs"] | {
        "n_stages": stages,
        "features_per_stage": list(FEATURES),
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    plans["configurations"][CONFIGURATION] = {
        "inherits_from": "3d_fullres",
        "patch_size": list(PATCH),
        "batch_size": 4,
        "architecture": architecture,
        "conemos": {"last_layers": LAST_LAYERS},
    }
    write_json(file, plans)


def seconds(predictor: nnUNetPredictor, case: Path) -> tuple[float, float, np.ndarray]:
    """Predict a case from its files to its label map; return processor seconds, those of a tile, and the map."""
    spent: list[float] = []
    network: Any = predictor.network
    forward = network.forward

    def timed(image: torch.Tensor) -> torch.Tensor:
        start = process_time()
        output = forward(image)
        spent.append(process_time() - start)
        return output

    network.forward = timed
    files = sorted(str(file) for file in case.parent.glob(f"{case.name}_*.nii.gz"))
    start = process_time()
    label_maps: Any = predictor.predict_from_files_sequential([files], None)
    whole = process_time() - start
    network.forward = forward
    return whole, median(spent), label_maps[0]


def stock_predictor(model: Path) -> nnUNetPredictor:
    """Return a predictor of the stock network of the same plans, without training."""
    trained = read_model(model)
    plans = PlansManager(trained.plans)
    network: Any = planned_network("nnUNetTrainer", plans, CONFIGURATION, trained.dataset_json)
    network.decoder.deep_supervision = False
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    configuration = plans.get_configuration(CONFIGURATION)
    predictor.manual_initialization(network, plans, configuration, None, trained.dataset_json, "nnUNetTrainer", None)
    predictor.list_of_parameters = [network.state_dict()]
    return predictor


def write_times() -> None:
    """Time the test cases with the stock network, exactly, and with labels that leave early, one after the other."""
    model = Path(nnUNet_results) / NAME / f"{TRAINER}__nnUNetPlans__{CONFIGURATION}"
    register_trainers()
    how = Inference(device="cpu", preprocessing=0, export=0)
    predictors = {
        "stock": stock_predictor(model),
        "exact": make_predictor(read_model(model), how),
        "skipping": make_predictor(read_model(model), replace(how, skip_absent=True)),
    }
    rows = []
    for file in sorted((Path(nnUNet_raw) / NAME / "imagesTs").glob("*_0000.nii.gz")):
        case = file.with_name(file.name.removesuffix("_0000.nii.gz"))
        for name, predictor in predictors.items():
            torch.set_num_threads(1)
            whole, tile, label_map = seconds(predictor, case)
            found = int((label_map > 0).sum())
            rows.append({"network": name, "case": case.name, "case_s": whole, "tile_s": tile, "voxels_found": found})
    for name in predictors:
        whole, tile = (median(row[column] for row in rows if row["network"] == name) for column in ("case_s", "tile_s"))
        print(f"{name:10} case {whole:7.2f} s   tile {tile:7.4f} s")
    with Path("times.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def print_tile_times() -> None:
    """Time one tile, in turn: stock network, exactly, and while some labels stay beyond a quarter of the size."""
    content = read_object(Path(nnUNet_preprocessed) / NAME / "nnUNetPlans.json")
    dataset_json = read_object(Path(nnUNet_preprocessed) / NAME / "dataset.json")
    names = [name for name in dataset_json["labels"] if name != "background"]
    plans = PlansManager(content | {PLANS_KEY: {"labels": names, "untaught": [], RECORDED: True}})
    register_trainers()
    stock, ours = (
        planned_network(name, plans, CONFIGURATION, dataset_json).eval() for name in ("nnUNetTrainer", TRAINER)
    )
    torch.set_num_threads(1)
    image = torch.randn(1, 3, *PATCH)
    spent: dict[str, list[float]] = {}
    for network in (stock, ours):
        decoder: Any = network.decoder
        decoder.deep_supervision = False
    for _ in range(ROUNDS):
        for stay in ("stock", "exact", *STAY):
            network = stock if stay == "stock" else ours
            if stay != "stock":
                let_stay(ours, None if stay == "exact" else int(stay))
            start = process_time()
            with torch.inference_mode():
                network(image)
            spent.setdefault(str(stay), []).append(process_time() - start)
    for stay, seconds_of_rounds in spent.items():
        print(f"{stay:>6} {median(seconds_of_rounds[1:]):7.4f} s")


def let_stay(network: Any, number: int | None) -> None:
    """Let so many labels, evenly chosen, stay beyond a quarter of the size, and all others leave there; None: exact."""
    network.leaves_early = number is not None
    network.absence_bounds.fill_(-1e6)
    network.absence_bounds[0] = -torch.inf  # as nnU-Net does not train it
    chosen = torch.linspace(0, ORGANS - 1, number or 0).round().long()
    network.absence_bounds[1] = torch.ones(ORGANS).index_fill(0, chosen, -1.0) * 1e6


if __name__ == "__main__":
    {"data": write_data, "plans": write_plans, "time": write_times, "tile": print_tile_times}[sys.argv[1]]()
