"""Results of the demo: a table and a picture of what stock nnU-Net misses and the conditional network finds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
import SimpleITK
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from nnunetv2_conemos.datasets.phantom import ORGANS

TEST_CASE = "test_00.nii.gz"


def dice_table(dice: pd.DataFrame) -> Table:
    """Build the table of mean Dice, organs x arms."""
    view = Table(title="Mean Dice on test cases that are annotated for everything")
    view.add_column("organ")
    for arm in dice.columns:
        view.add_column(arm, justify="right")
    for organ, row in dice.iterrows():
        view.add_row(str(organ), *(f"{value:.2f}" for value in row), end_section=organ == dice.index[-1])
    view.add_row("mean", *(f"{value:.2f}" for value in dice.mean()), style="bold")
    return view


def picture(raw: Path, predictions: Mapping[str, Path], dice: pd.DataFrame) -> Figure:
    """Draw each site's annotations (above), a test case with ground truth and predictions (below), and Dice (right).

    `raw` is the phantom written by `write_phantom`, `predictions` the folder of predicted test cases per arm, `dice`
    organs x arms.
    """
    figure = Figure(figsize=(15, 6.4), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(2.2, 1))[0]
    above, below = left.subfigures(2, 1)
    above.suptitle("Training: each site annotates only some of the organs")
    cases = sorted(file.name for file in (raw / "labelsTr").glob("*_00.nii.gz"))
    for axes, case in zip(above.subplots(1, len(cases)), cases, strict=True):
        site = case.removesuffix("_00.nii.gz")
        level = fullest_slice(read_volume(raw / "truthTr" / case))
        image = read_volume(raw / "imagesTr" / f"{site}_00_0000.nii.gz")
        show(axes, image[level], read_volume(raw / "labelsTr" / case)[level], site)
    below.suptitle("Testing: a case that neither network has seen")
    truth, image = read_volume(raw / "labelsTs" / TEST_CASE), read_volume(raw / "imagesTs" / "test_00_0000.nii.gz")
    level = fullest_slice(truth)
    found = {arm: read_volume(folder / TEST_CASE) for arm, folder in predictions.items()}
    panels = {"image": np.zeros_like(truth), "complete truth": truth, **found}
    for axes, (title, labels) in zip(below.subplots(1, len(panels)), panels.items(), strict=True):
        show(axes, image[level], labels[level], title)
    draw_bars(right.subplots(), dice)
    return figure


def read_volume(file: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))


def fullest_slice(truth: np.ndarray) -> int:
    """Return the axial slice that shows all organs best: the one with the largest minimum of relative areas."""
    areas = np.stack([(truth == label).sum((1, 2)) for label in range(1, len(ORGANS) + 1)])
    return int((areas / areas.max(1, keepdims=True).clip(1)).min(0).argmax())


def show(axes: Axes, image: np.ndarray, labels: np.ndarray, title: str) -> None:
    """Draw one slice [y, x] in a soft-tissue window, with organs in colour."""
    axes.imshow(image, cmap="gray", vmin=-150, vmax=250)
    colours = np.array([(0, 0, 0, 0), *((*colour, 0.6) for colour in sns.color_palette("bright", len(ORGANS)))])
    axes.imshow(colours[labels], interpolation="nearest")
    axes.set_title(title, fontsize="medium")
    axes.set_axis_off()


def draw_bars(axes: Axes, dice: pd.DataFrame) -> None:
    """Draw Dice per organ in its colour: an outlined bar for the first arm, a filled one for the second."""
    colours = sns.color_palette("bright", len(dice))
    for column, (arm, offset) in enumerate(zip(dice.columns, (-0.2, 0.2), strict=True)):
        fill = ["none"] * len(dice) if column == 0 else colours
        bars = axes.bar(np.arange(len(dice)) + offset, dice[arm], 0.38, color=fill, edgecolor=colours, linewidth=2)
        axes.bar_label(bars, fmt="%.2f", fontsize="small", padding=2)
        axes.bar(0, 0, color="none" if column == 0 else "grey", edgecolor="grey", linewidth=2, label=arm)
    axes.set(ylim=(0, 1), ylabel="mean Dice on the test cases", xticks=range(len(dice)))
    axes.set_xticklabels(dice.index)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.1), ncols=2, frameon=False)
    sns.despine(ax=axes)
