"""Pictures of predictions beside the ground truth: for each arm, its median and its worst test case."""

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

from nnunetv2_conemos.benchmark.config import TestSet
from nnunetv2_conemos.benchmark.plots.charts import save
from nnunetv2_conemos.datasets.readers import reader_of
from nnunetv2_conemos.datasets.volumes import read_label_map
from nnunetv2_conemos.evaluation.significance import case_scores


def draw_overlays(arms: Mapping[str, tuple[Path, pd.DataFrame]], test: TestSet, dataset_json: dict, file: Path) -> None:
    """Draw a row per arm: ground truth and prediction of its median case, then of its worst, if that is another.

    `arms`: folder of label maps, and the scores of each case and label in them.
    """
    ending = dataset_json["file_ending"]
    reader = reader_of(dataset_json, next(iter(sorted(test.labels.glob(f"*{ending}")))))
    values = shown_values(dataset_json)
    number = max(values.values())
    picked = {arm: median_and_worst(case_scores(scores, "dice")[arm].mean(axis=1)) for arm, (_, scores) in arms.items()}
    columns = 2 * max(map(len, picked.values()))
    figure = Figure(figsize=(0.6 + 2.6 * columns, 2.9 * len(arms) + 0.6), layout="constrained")
    grid = figure.subplots(len(arms), columns, squeeze=False)
    for row, (arm, (folder, _)) in zip(grid, arms.items(), strict=True):
        for place, (case, title) in enumerate(picked[arm].items()):
            image, truth, aspect = read(reader, test, case, ending)
            predicted = read_label_map(folder / f"{case}{ending}", reader).data.astype(int)
            level = fullest_slice(truth)
            show(row[2 * place], image[level], truth[level], number, aspect, f"{case}: truth")
            show(row[2 * place + 1], image[level], predicted[level], number, aspect, title)
        for axes in row[2 * len(picked[arm]) :]:
            axes.set_axis_off()
        row[0].set_ylabel(arm, fontsize="small")
    palette = sns.color_palette("bright", number)
    handles = [Patch(color=palette[value - 1], label=name) for name, value in values.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, frameon=False)
    save(figure, file)


def median_and_worst(dice: pd.Series) -> dict[str, str]:
    """Return case -> title of its picture; one case, where both are the same."""
    dice = dice.dropna().sort_values()
    median, worst = str(dice.index[(len(dice) - 1) // 2]), str(dice.index[0])
    if median == worst:
        return {worst: f"Dice {dice[worst]:.2f}"}
    return {median: f"median, Dice {dice[median]:.2f}", worst: f"worst, Dice {dice[worst]:.2f}"}


def shown_values(dataset_json: dict) -> dict[str, int]:
    """Return label -> the value that nnU-Net writes for it."""
    first = {name: int(np.atleast_1d(value)[0]) for name, value in dataset_json["labels"].items()}
    del first["background"]
    regions = [name for name in first if name != "ignore"]
    return first | dict(zip(regions, dataset_json.get("regions_class_order") or [], strict=False))


def read(reader: BaseReaderWriter, test: TestSet, case: str, ending: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Read the first channel and label map of a test case, [*S] each, and the aspect (height by width) of a pixel."""
    files = sorted(str(file) for file in test.images.glob(f"{escape(case)}_[0-9][0-9][0-9][0-9]{ending}"))
    image, grid = reader.read_images(files)
    _, height, width = grid["spacing"]
    return image[0], read_label_map(test.labels / f"{case}{ending}", reader).data.astype(int), height / width


def fullest_slice(truth: np.ndarray) -> int:
    """Return the slice with the most labels; of several, the one with the most labelled voxels."""
    present = [(len(np.unique(level)), int((level > 0).sum())) for level in truth]
    return max(range(len(truth)), key=lambda level: present[level])


def show(axes: Axes, image: np.ndarray, labels: np.ndarray, number: int, aspect: float, title: str) -> None:
    """Draw one slice [y, x], with its labels in colour."""
    low, high = np.percentile(image, (1, 99))
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=aspect)
    palette = np.array([(0, 0, 0, 0), *((*colour, 0.55) for colour in sns.color_palette("bright", number))])
    axes.imshow(palette[labels.clip(0, number)], interpolation="nearest", aspect=aspect)
    axes.set_title(title, fontsize="small")
    axes.set(xticks=[], yticks=[])
    sns.despine(ax=axes, left=True, bottom=True)
