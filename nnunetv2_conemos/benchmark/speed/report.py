"""The results: a table of ratios, CSV, JSON and a figure."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from nnunetv2_conemos.benchmark.speed.settings import SpeedSettings
from nnunetv2_conemos.files import write_aside, write_json
from nnunetv2_conemos.training.variants import STOCK

CASE = tuple(f"{way}case_{what}" for way in ("", "nnunet_") for what in ("s", "cpu_s", "mib", "gpu_mib"))
MEASURED = ("step_s", "step_mib", "tile_s", "tile_mib", *CASE, "parameters")
COLUMNS = ("arm", "labels", *MEASURED, "graphs", "graph_breaks", "recompilations", "note")
RESULTS = "speed.csv"
PANELS = {
    "tile_s": "prediction of a tile: time",
    "step_s": "training step: time",
    "step_mib": "training step: memory",
    "case_s": "a whole case: time",
    "case_mib": "a whole case: memory of the process",
    "nnunet_case_mib": "a whole case, nnU-Net's way: memory",
    "tile_mib": "prediction of a tile: memory",
}


def with_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Add a column NAME_ratio for each measured one: multiples of stock nnU-Net's value for the same labels."""
    values = table[[*MEASURED]].apply(pd.to_numeric)
    rows_of_stock = {labels: row for row, labels in table.loc[table["arm"] == STOCK, "labels"].items()}
    stock = [rows_of_stock[labels] for labels in table["labels"]]
    ratios = values / values.loc[stock].to_numpy()
    return table.join(ratios.add_suffix("_ratio"))


def write_results(folder: Path, table: pd.DataFrame, loaders: pd.DataFrame, settings: SpeedSettings) -> list[Path]:
    """Write speed.csv, speed.json and speed.png, and loaders.csv where loaders were measured; return the files."""
    files = [folder / name for name in (RESULTS, "speed.json", "speed.png")]
    write_aside(files[0], lambda file: table.to_csv(file, index=False))
    write_json(
        files[1],
        {
            "machine": machine(settings.device),
            "settings": asdict(settings),
            "rows": records(table),
            "loaders": records(loaders),
        },
    )
    write_aside(files[2], lambda file: draw(table, file))
    if len(loaders):
        files.append(folder / "loaders.csv")
        write_aside(files[-1], lambda file: loaders.to_csv(file, index=False))
    return files


def records(table: pd.DataFrame) -> list[dict]:
    """Return the rows of a table, None where there is no value."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def machine(device: str) -> dict[str, object]:
    """Return what the times depend on."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def draw(table: pd.DataFrame, file: Path) -> None:
    """Draw multiples of stock nnU-Net's values against the number of labels."""
    panels = [name for name in PANELS if table[f"{name}_ratio"].notna().to_numpy().any()]
    figure = Figure(figsize=(4.2 * max(1, len(panels)), 4.2), layout="constrained")
    arms: Sequence[str] = list(dict.fromkeys(table["arm"]))
    palette = dict(zip(arms, sns.color_palette("colorblind" if len(arms) <= 10 else "husl", len(arms)), strict=True))
    for axes, name in zip(np.ravel(figure.subplots(1, max(1, len(panels)))), panels, strict=False):
        for arm, rows in table.groupby("arm", sort=False):
            axes.plot(rows["labels"], rows[f"{name}_ratio"], "o-", ms=4, color=palette[str(arm)], label=str(arm))
        axes.set(xscale="log", yscale="log", xlabel="labels K", title=PANELS[name])
        axes.set_xticks(sorted(set(table["labels"])))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ScalarFormatter())
            axis.set_minor_formatter(lambda *_: "")
        axes.set_yticks(ratio_ticks(table[f"{name}_ratio"].dropna().tolist()))
        axes.grid(axis="y", alpha=0.3)
        sns.despine(ax=axes)
    if panels:
        figure.axes[0].set_ylabel("multiples of stock nnU-Net")
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(file, dpi=130, format="png")


def ratio_ticks(ratios: Sequence[float]) -> list[float]:
    """Return the ticks of a panel: powers of two that cover its ratios."""
    lowest, highest = np.floor(np.log2(min(ratios))), np.ceil(np.log2(max(ratios)))
    return (2.0 ** np.arange(lowest, highest + 1)).tolist()
