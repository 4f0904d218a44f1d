"""Pictures of predictions beside the truth: for each arm its median and its worst test case."""

from __future__ import annotations

from collections.abc import Mapping
from glob import escape
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunetv2_conemos.benchmark.figures import save
from nnunetv2_conemos.benchmark.recipe import TestSet
from nnunetv2_conemos.raw_writer import reader_of
from nnunetv2_conemos.statistics import case_scores


def draw_overlays(arms: Mapping[str, tuple[Path, pd.DataFrame]], test: TestSet, dataset_json: dict, file: Path) -> None:
    """A row per arm: truth and prediction of its median case, then of its worst.

    `arms`: folder of label maps, and the scores of each case and label in them.
    """
    ending = dataset_json["file_ending"]
    reader = reader_of(dataset_json, next(iter(sorted(test.labels.glob(f"*{ending}")))))
    values = [np.atleast_1d(value).tolist() for name, value in dataset_json["labels"].items() if name != "background"]
    number = max(value for entry in values for value in entry)
    figure = Figure(figsize=(11, 2.9 * len(arms) + 0.6), layout="constrained")
    grid = figure.subplots(len(arms), 4, squeeze=False)
    for row, (arm, (folder, scores)) in zip(grid, arms.items(), strict=True):
        dice: pd.Series = case_scores(scores, "dice")[arm].mean(axis=1).dropna().sort_values()
        picked = {"median": str(dice.index[(len(dice) - 1) // 2]), "worst": str(dice.index[0])}
        for (which, case), place in zip(picked.items(), (0, 2), strict=True):
            image, truth, aspect = read(reader, test, case, ending)
            predicted = reader.read_seg(str(folder / f"{case}{ending}"))[0][0].astype(int)
            level = fullest_slice(truth)
            show(row[place], image[level], truth[level], number, aspect, f"{case}: truth")
            show(row[place + 1], image[level], predicted[level], number, aspect, f"{which}, Dice {dice[case]:.2f}")
        row[0].set_ylabel(arm, fontsize="small")
    palette = sns.color_palette("bright", number)
    shown = [(name, values[0]) for name, values in zip(label_names(dataset_json), values, strict=True)]
    handles = [Patch(color=palette[value - 1], label=name) for name, value in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False)
    save(figure, file)


def label_names(dataset_json: dict) -> list[str]:
    return [name for name in dataset_json["labels"] if name != "background"]


def read(reader: BaseReaderWriter, test: TestSet, case: str, ending: str) -> tuple[np.ndarray, np.ndarray, float]:
    """First channel and label map of a test case, [*S] each, and how much taller than wide a pixel of a slice is."""
    files = sorted(str(file) for file in test.images.glob(f"{escape(case)}_[0-9][0-9][0-9][0-9]{ending}"))
    image, grid = reader.read_images(files)
    _, height, width = grid["spacing"]
    return image[0], reader.read_seg(str(test.labels / f"{case}{ending}"))[0][0].astype(int), height / width


def fullest_slice(truth: np.ndarray) -> int:
    """The slice with the most labels, and of those the one with the most labelled voxels."""
    present = [(len(np.unique(level)), int((level > 0).sum())) for level in truth]
    return max(range(len(truth)), key=lambda level: present[level])


def show(axes: Axes, image: np.ndarray, labels: np.ndarray, number: int, aspect: float, title: str) -> None:
    """One slice [y, x], its labels in colour."""
    low, high = np.percentile(image, (1, 99))
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=aspect)
    palette = np.array([(0, 0, 0, 0), *((*colour, 0.55) for colour in sns.color_palette("bright", number))])
    axes.imshow(palette[labels.clip(0, number)], interpolation="nearest", aspect=aspect)
    axes.set_title(title, fontsize="small")
    axes.set(xticks=[], yticks=[])
    sns.despine(ax=axes, left=True, bottom=True)
