"""Draw the picture of README.md from the folder of a benchmark: who annotated what, truth, stock nnU-Net, ours.

    conemos benchmark docs/benchmarks/hippocampus_slices.yaml --epochs 5 --seeds 0 -o slices
    python docs/figures/make_hippocampus.py slices docs/figures/hippocampus.png

The test case is the one with the median mean Dice under stock nnU-Net, the slice the sagittal one with the most
labelled voxels; the training cases are the first of each source. Dice in the titles are means over all test cases.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

COLOURS = {"anterior": "#e69f00", "posterior": "#0072b2"}  # values 1 and 2
ARMS = {"vanilla": "stock nnU-Net", "ConditionalFiLMTrainer": "ConditionalFiLMTrainer"}


def read(file: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))


def fullest(labels: np.ndarray) -> int:
    """The sagittal slice with the most labelled voxels; `labels` are [z, y, x]."""
    return int((labels > 0).sum((0, 1)).argmax())


def show(axes: Axes, image: np.ndarray, labels: np.ndarray, x: int, title: str) -> None:
    """Sagittal slice `x`: the image in grey, what is labelled in colour."""
    level = image[..., x]
    low, high = np.percentile(level, (1, 99))
    axes.imshow(level, cmap="gray", vmin=low, vmax=high, origin="lower")
    palette = np.array([(0, 0, 0, 0), *(to_rgba(colour, 0.6) for colour in COLOURS.values())])
    axes.imshow(palette[labels[..., x].astype(int)], origin="lower", interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()


def median_case(scores: pd.DataFrame, arm: str) -> str:
    means = scores[scores.arm == arm].groupby("case").dice.mean().sort_values()
    return str(means.index[(len(means) - 1) // 2])


def draw(folder: Path, file: Path, epochs: int = 5, seed: int = 0) -> str:
    """Write the picture; return what its caption must say."""
    scores = pd.read_csv(folder / "cases.csv").query("epochs == @epochs and seed == @seed")
    mean = scores.groupby(["arm", "label"]).dice.mean().groupby("arm").mean()
    raw = folder / "nnUNet_raw" / "Dataset900_Partial"
    dataset = json.loads((raw / "dataset.json").read_text())
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    row = figure.subplots(1, 5)
    for axes, (source, content) in zip(row, dataset["sources"].items(), strict=False):
        case, number = content["cases"][0], len(content["cases"])
        labels = read(raw / dataset["dataset"][case]["label"])
        image = read(Path(dataset["dataset"][case]["images"][0]))
        show(
            axes,
            image,
            labels,
            fullest(read(raw / "labelsTr_complete" / f"{case}.nii.gz")),
            f"{number} training cases\nannotate {source} only",
        )
    case = median_case(scores, "vanilla")
    image, truth = (
        read(folder / "test" / "imagesTr" / f"{case}_0000.nii.gz"),
        read(folder / "test" / "labelsTr" / f"{case}.nii.gz"),
    )
    x = fullest(truth)
    show(row[2], image, truth, x, "test case\ntruth")
    for axes, (arm, title) in zip(row[3:], ARMS.items(), strict=True):
        found = folder / "runs" / f"{arm}__{epochs}epochs__seed{seed}__foldall" / "predictions" / f"{case}.nii.gz"
        show(axes, image, read(found), x, f"{title}\nmean Dice {mean[arm]:.3f}")
    handles = [Patch(color=colour, alpha=0.6, label=label) for label, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(file, dpi=110)
    own = scores[scores.case == case].groupby("arm").dice.mean()
    return f"{case}, slice {x}: " + ", ".join(f"{arm} {own[arm]:.3f} (all cases {mean[arm]:.3f})" for arm in ARMS)


if __name__ == "__main__":
    print(draw(Path(sys.argv[1]), Path(sys.argv[2])))
