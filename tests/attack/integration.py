"""nnU-Net's own integration recipe with trainers of this package: `python -m attack.integration -o FOLDER`.

Hippocampus as four datasets: regions with an ignore label (996), regions (997), an ignore label (998), plain labels
(999), each partially labelled. For each trainer: 2d, 3d_fullres and a low resolution, five folds of one short epoch on
small networks, prediction, an ensemble, `conemos best`, a model zip exported and installed elsewhere, and a label
exported and predicted where the package is not installed. Steps that are done are skipped when it is called again; a
table of steps and outcomes ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import SimpleITK
from paths import ROOT
from real import DATA
from stock import predict_without_the_plugin

from attack.summary import table
from nnunetv2_conemos.datasets.plans import small_configuration
from nnunetv2_conemos.subprocesses import environment_below

HIPPOCAMPUS = DATA / "Hippocampus"
TRAINERS = ("ConditionalFiLMTrainer", "LabelSetFiLMTrainer")
CONFIGURATIONS = {"2d": "2d", "3d_fullres": "3d_fullres", "3d_lowres": "3d_fullres"}  # -> what it is made from
LOW = [2.0, 2.0, 2.0]  # mm; nnU-Net plans no low resolution for volumes this small
IGNORE = 3
PLAIN: dict[str, Any] = {"background": 0, "anterior": 1, "posterior": 2}
REGIONS: dict[str, Any] = {"background": 0, "hippocampus": [1, 2], "posterior": 2}
QUICK = ("-device", "cpu", "-npp", "1", "-nps", "1", "--disable_tta")


class Dataset(NamedTuple):
    """A form of Hippocampus: its labels, and whether it has an ignore label."""

    name: str
    labels: dict[str, Any]
    ignore: bool

    @property
    def exported(self) -> str:
        """The label that is exported."""
        return "posterior"


DATASETS = {
    996: Dataset("Dataset996_RegionsIgnore", REGIONS, True),
    997: Dataset("Dataset997_Regions", REGIONS, False),
    998: Dataset("Dataset998_Ignore", PLAIN, True),
    999: Dataset("Dataset999_Plain", PLAIN, False),
}


class Step(NamedTuple):
    """A step: its name, and what does it."""

    name: str
    work: Callable[[], None]


class Recipe:
    """The steps of one run, in a folder that holds nnU-Net's three."""

    def __init__(self, folder: Path, cases: int, folds: list[int], configurations: list[str]):
        self.folder, self.cases, self.folds, self.configurations = folder, cases, folds, configurations
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "logs", "complete"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        current = os.environ | {"nnUNet_extTrainer": str(ROOT / "tests" / "attack" / "trainers")}
        more = {"nnUNet_compile": "f", "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
        self.environment = environment_below(folder, current) | more

    def steps(self, number: int, trainers: list[str]) -> Iterator[Step]:
        """Yield all steps of a dataset."""
        dataset = DATASETS[number]
        yield Step("data", lambda: self.write_data(dataset))
        yield Step("check", lambda: self.run("conemos", "check", number))
        yield Step("plan", lambda: self.plan(number, dataset))
        for trainer in trainers:
            yield from self.of_trainer(number, dataset, f"FewSteps{trainer}")

    def of_trainer(self, number: int, dataset: Dataset, trainer: str) -> Iterator[Step]:
        """Yield the steps of one trainer: train, predict, ensemble, rank, export."""
        images, predicted = (
            self.folder / "complete" / dataset.name / "imagesTs",
            self.folder / "predicted" / dataset.name,
        )
        for configuration in self.configurations:
            for fold in self.folds:
                words = (
                    "nnUNetv2_train",
                    number,
                    small(configuration),
                    fold,
                    "-tr",
                    trainer,
                    "-device",
                    "cpu",
                    "--npz",
                )
                yield Step(f"{trainer} {configuration} train {fold}", lambda words=words: self.run(*words))
            output = predicted / f"{trainer}_{configuration}"
            words = ("nnUNetv2_predict", "-i", images, "-o", output, "-d", number, "-c", small(configuration))
            words = (*words, "-tr", trainer, "-f", *self.folds, "--save_probabilities", *QUICK)
            yield Step(f"{trainer} {configuration} predict", lambda words=words: self.run(*words))
            truth = images.with_name("labelsTs")
            words = ("conemos", "evaluate", truth, output, "--complete", "--overwrite", "-np", 1)
            yield Step(f"{trainer} {configuration} evaluate", lambda words=words: self.run(*words))
        if len(self.configurations) > 1:
            outputs = [predicted / f"{trainer}_{configuration}" for configuration in self.configurations[:2]]
            words = ("nnUNetv2_ensemble", "-i", *outputs, "-o", predicted / f"{trainer}_ensemble", "-np", 1)
            yield Step(f"{trainer} ensemble", lambda words=words: self.run(*words))
        words = ("conemos", "best", number, "-tr", trainer, "-f", *self.folds, "-np", 1)
        yield Step(f"{trainer} best", lambda: self.run(*words))
        configuration = self.configurations[-1]
        yield Step(f"{trainer} zip", lambda: self.zip_and_install(number, trainer, configuration, images, predicted))
        yield Step(f"{trainer} export", lambda: self.export(dataset, trainer, configuration, images))

    def run(self, *words: object, results: Path | None = None) -> None:
        """Run one command; its output goes into a log, and raises RuntimeError with its end if the command fails."""
        log = self.folder / "logs" / f"{int(time.time() * 1000)}_{words[0]}.txt"
        environment = self.environment | ({"nnUNet_results": str(results)} if results else {})
        with log.open("w") as file:
            words = (Path(sys.executable).parent / str(words[0]), *words[1:])
            done = subprocess.run(list(map(str, words)), env=environment, stdout=file, stderr=file)
        if done.returncode:
            raise RuntimeError(f"status {done.returncode}, {log}: {log.read_text(errors='replace').strip()[-400:]}")

    def write_data(self, dataset: Dataset) -> None:
        """Write a complete dataset, and the partially labelled copy that is trained on: one label in each case."""
        complete = self.folder / "complete" / dataset.name
        shutil.rmtree(complete, ignore_errors=True)
        names = sorted(file.name for file in (HIPPOCAMPUS / "labelsTr").glob("*.nii.gz"))[: self.cases + 3]
        for place, name in enumerate(names):
            part = "Tr" if place < self.cases else "Ts"
            for folder in ("images", "labels"):
                (complete / f"{folder}{part}").mkdir(parents=True, exist_ok=True)
            image = name.replace(".nii.gz", "_0000.nii.gz")
            shutil.copy(HIPPOCAMPUS / "imagesTr" / image, complete / f"images{part}")
            self._write_map(HIPPOCAMPUS / "labelsTr" / name, complete / f"labels{part}" / name, dataset, part)
        content = json.loads((HIPPOCAMPUS / "dataset.json").read_text())
        labels = dataset.labels | ({"ignore": IGNORE} if dataset.ignore else {})
        order = {"regions_class_order": [1, 2]} if dataset.labels is REGIONS else {}
        (complete / "dataset.json").write_text(
            json.dumps(content | {"labels": labels, "numTraining": self.cases} | order)
        )
        self.run("conemos", "hide", complete, "-o", dataset.name, "--per-case", 1, "--overwrite", "-np", 1)

    def _write_map(self, source: Path, target: Path, dataset: Dataset, part: str) -> None:
        """Copy a label map; for training with an ignore label, the lowest slices are ignored."""
        image = SimpleITK.ReadImage(str(source))
        array = SimpleITK.GetArrayFromImage(image).astype(np.uint8)
        if dataset.ignore and part == "Tr":
            array[:4] = IGNORE
        changed = SimpleITK.GetImageFromArray(array)
        changed.CopyInformation(image)
        SimpleITK.WriteImage(changed, str(target))

    def plan(self, number: int, dataset: Dataset) -> None:
        """Plan and preprocess, and add small networks for each configuration."""
        plan_words = ("nnUNetv2_plan_and_preprocess", "-d", number, "-npfp", 1, "-np", 1, "--no_pp")
        self.run(*plan_words)
        file = self.folder / "nnUNet_preprocessed" / dataset.name / "nnUNetPlans.json"
        plans = json.loads(file.read_text())
        for name in self.configurations:
            base = CONFIGURATIONS[name]
            plans["configurations"][small(name)] = small_configuration(plans, base, features=4, batch=2)
            if name == "3d_lowres":
                planned = plans["configurations"][base]
                shape = np.array(planned["median_image_size_in_voxels"]) * np.array(planned["spacing"]) / LOW
                low = {
                    "data_identifier": "nnUNetPlans_low",
                    "spacing": LOW,
                    "median_image_size_in_voxels": shape.tolist(),
                }
                plans["configurations"][small(name)] |= low
        file.write_text(json.dumps(plans))
        words = ("nnUNetv2_preprocess", "-d", number, "-np", *["1"] * len(self.configurations))
        self.run(*words, "-c", *map(small, self.configurations))

    def zip_and_install(self, number: int, trainer: str, configuration: str, images: Path, predicted: Path) -> None:
        """Export a model as a zip, install it elsewhere, and predict the same with it."""
        archive, elsewhere = self.folder / f"{trainer}_{number}.zip", self.folder / "elsewhere"
        archive.unlink(missing_ok=True)
        shutil.rmtree(elsewhere, ignore_errors=True)
        elsewhere.mkdir()
        words = ("-d", number, "-o", archive, "-c", small(configuration), "-tr", trainer, "-f", *self.folds)
        self.run("nnUNetv2_export_model_to_zip", *words)
        self.run("nnUNetv2_install_pretrained_model_from_zip", archive, results=elsewhere)
        output = self.folder / "predicted_elsewhere"
        shutil.rmtree(output, ignore_errors=True)
        words = (
            "-i",
            images,
            "-o",
            output,
            "-d",
            number,
            "-c",
            small(configuration),
            "-tr",
            trainer,
            "-f",
            *self.folds,
        )
        self.run("nnUNetv2_predict", *words, *QUICK, results=elsewhere)
        require_equal(output, predicted / f"{trainer}_{configuration}", lambda array: array)

    def export(self, dataset: Dataset, trainer: str, configuration: str, images: Path) -> None:
        """Export a label; stock nnU-Net without this package predicts the same as `conemos predict --labels`."""
        model = self.folder / "nnUNet_results" / dataset.name / f"{trainer}__nnUNetPlans__{small(configuration)}"
        stock = self.folder / "exported"
        fold = str(self.folds[0])
        self.run("conemos", "export", "-m", model, "--label", dataset.exported, "-o", stock, "-f", fold, "--overwrite")
        ours, theirs = self.folder / "label_by_us", self.folder / "label_by_stock"
        for output in (ours, theirs):
            shutil.rmtree(output, ignore_errors=True)
        words = ("-i", images, "-o", ours, "-m", model, "-f", fold, "--labels", dataset.exported)
        self.run("conemos", "predict", *words, *QUICK)
        predict_without_the_plugin(stock, images, theirs, *QUICK)
        value = dataset.labels[dataset.exported]
        require_equal(theirs, ours, lambda array: array == value)


def small(configuration: str) -> str:
    """Return the name of the small version of a configuration."""
    return f"{configuration}_small"


def require_equal(one: Path, other: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Raise RuntimeError where maps of two folders differ, `change` applied to the second, except at exact ties."""
    files = sorted(one.glob("*.nii.gz"))
    if not files:
        raise RuntimeError(f"{one}: no predictions")
    for file in files:
        ours, theirs = (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(f / file.name))) for f in (one, other))
        share = float(np.mean(ours != change(theirs)))
        if share > 1e-4:
            raise RuntimeError(f"{file.name}: {share:.2%} of the voxels differ between {one.name} and {other.name}")


def carry_out(folder: Path, number: int, steps: Iterator[Step], outcomes: dict[str, dict[str, Any]]) -> None:
    """Carry out the steps of a dataset that are not done; what follows a failed one is tried as well."""
    for step in steps:
        key = f"{number} {step.name}"
        if outcomes.get(key, {}).get("outcome") == "done":
            continue
        began, outcome = time.monotonic(), "done"
        try:
            step.work()
        except (RuntimeError, AssertionError, OSError) as error:
            outcome = f"failed: {error}"
        outcomes[key] = {"outcome": outcome, "seconds": round(time.monotonic() - began)}
        (folder / "outcomes.json").write_text(json.dumps(outcomes, indent=1))
        print(f"{key}: {outcome[:300]} ({outcomes[key]['seconds']} s)", flush=True)


def main() -> int:
    """Run the recipe, or a part of it; the exit status is 1 where a step failed."""
    parser = argparse.ArgumentParser(prog="python -m attack.integration", description=__doc__)
    parser.add_argument("-o", dest="folder", type=Path, required=True, help="work and results; may be called again")
    parser.add_argument("-d", dest="datasets", type=int, nargs="+", default=list(DATASETS), choices=DATASETS)
    parser.add_argument("-c", dest="configurations", nargs="+", default=list(CONFIGURATIONS), choices=CONFIGURATIONS)
    parser.add_argument("-f", dest="folds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("-tr", dest="trainers", nargs="+", default=list(TRAINERS), choices=TRAINERS)
    parser.add_argument("--cases", type=int, default=20, help="training cases [%(default)s]")
    args = parser.parse_args()
    if not HIPPOCAMPUS.is_dir():
        print(f"skipped: no Hippocampus in {DATA}; name the folder of real volumes by CONEMOS_TEST_DATA")
        return 0
    folder = args.folder.resolve()
    recipe = Recipe(folder, args.cases, args.folds, args.configurations)
    file = folder / "outcomes.json"
    outcomes = json.loads(file.read_text()) if file.is_file() else {}
    for number in args.datasets:
        carry_out(folder, number, recipe.steps(number, args.trainers), outcomes)
    rows = [(key, entry["outcome"][:80].replace("\n", " "), entry["seconds"]) for key, entry in outcomes.items()]
    print(table(("step", "outcome", "seconds"), rows))
    return int(any(entry["outcome"] != "done" for entry in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
