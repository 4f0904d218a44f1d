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
from typing import NamedTuple

import numpy as np
import pandas as pd
import SimpleITK
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

COLOURS = {"anterior": "#e69f00", "posterior": "#0072b2"}  # values 1 and 2
ARMS = {"vanilla": "stock nnU-Net", "ConditionalFiLMTrainer": "ConditionalFiLMTrainer"}
EPOCHS, SEED = 5, 0


class Panel(NamedTuple):
    """One picture: a sagittal slice of an image and of its label map, both [z, y]."""

    title: str
    image: np.ndarray
    labels: np.ndarray


def read(file: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))


def fullest(labels: np.ndarray) -> int:
    """Return the sagittal slice with the most labelled voxels; `labels` are [z, y, x]."""
    return int((labels > 0).sum((0, 1)).argmax())


def training_panels(raw: Path) -> list[Panel]:
    """Return the first case of each source, as it is annotated."""
    dataset, panels = json.loads((raw / "dataset.json").read_text()), []
    for source, content in dataset["sources"].items():
        case = content["cases"][0]
        files = dataset["dataset"][case]
        x = fullest(read(raw / "labelsTr_complete" / f"{case}.nii.gz"))
        image, labels = (read(raw / file) for file in (files["images"][0], files["label"]))
        title = f"{len(content['cases'])} training cases:\n{source} annotated"
        panels.append(Panel(title, image[..., x], labels[..., x]))
    return panels


def test_panels(folder: Path, scores: pd.DataFrame) -> tuple[str, list[Panel]]:
    """Return the median case of stock nnU-Net: its name, its truth and what each arm predicted."""
    stock = scores[scores.arm == "vanilla"].groupby("case").dice.mean().sort_values()
    case = str(stock.index[(len(stock) - 1) // 2])
    image = read(folder / "test" / "imagesTr" / f"{case}_0000.nii.gz")
    truth = read(folder / "test" / "labelsTr" / f"{case}.nii.gz")
    x = fullest(truth)
    panels = [Panel("test case: truth\n", image[..., x], truth[..., x])]
    for arm, name in ARMS.items():
        run = folder / "runs" / f"{arm}__{EPOCHS}epochs__seed{SEED}__foldall"
        mean = scores[scores.arm == arm].groupby("label").dice.mean().mean()
        predicted = read(run / "predictions" / f"{case}.nii.gz")
        panels.append(Panel(f"{name}\nDice {mean:.2f} over all test cases", image[..., x], predicted[..., x]))
    return case, panels


def show(axes: Axes, panel: Panel, shape: tuple[int, int]) -> None:
    """Draw the image in grey, padded to `shape`, and what is labelled in colour."""
    low, high = np.percentile(panel.image, (1, 99))
    gaps = np.subtract(shape, panel.image.shape)
    margins = np.stack((gaps // 2, gaps - gaps // 2), axis=1)
    palette = np.array([(0, 0, 0, 0), *(to_rgba(colour, 0.6) for colour in COLOURS.values())])
    axes.imshow(np.pad(panel.image, margins), cmap="gray", vmin=low, vmax=high, origin="lower")
    axes.imshow(palette[np.pad(panel.labels.astype(int), margins)], origin="lower", interpolation="nearest")
    axes.set_title(panel.title, fontsize=9)
    axes.set_axis_off()


def draw(folder: Path, file: Path) -> str:
    """Write the picture; return the test case and its Dice under each arm, for the caption."""
    scores = pd.read_csv(folder / "cases.csv").query("epochs == @EPOCHS and seed == @SEED")
    case, panels = test_panels(folder, scores)
    panels = training_panels(folder / "nnUNet_raw" / "Dataset900_Partial") + panels
    height, width = (max(sizes) for sizes in zip(*(panel.image.shape for panel in panels), strict=True))
    figure = Figure(figsize=(11.5, 2.65), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels)), panels, strict=True):
        show(axes, panel, (height, width))
    handles = [Patch(color=colour, alpha=0.6, label=label) for label, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(file, dpi=110)
    own = scores[scores.case == case].groupby("arm").dice.mean()
    return f"{case}: " + ", ".join(f"{arm} {own[arm]:.3f}" for arm in ARMS)


if __name__ == "__main__":
    print(draw(Path(sys.argv[1]), Path(sys.argv[2])))
