"""Draw how similar labels are to networks that learn a prior for each label."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import seaborn as sns
import torch.nn.functional as F
from matplotlib.figure import Figure

from nnunetv2_conemos.benchmark.plots.charts import save
from nnunetv2_conemos.inference.model_folder import ModelFolder


def prior_similarity(model: ModelFolder, checkpoint: dict[str, Any]) -> pd.DataFrame | None:
    """Return the cosine between the priors of any two supervised labels; None for networks without priors."""
    network: Any = model.network(checkpoint)
    if not hasattr(network, "label_priors"):
        return None
    directions = F.normalize(network.label_priors(), dim=1)
    names = list(model.labels.names)
    supervised = [name for name in names if name not in model.never_annotated]
    similarity = pd.DataFrame((directions @ directions.T).cpu().numpy(), index=pd.Index(names), columns=pd.Index(names))
    return similarity.loc[supervised, supervised]


def draw_priors(arms: Mapping[str, pd.DataFrame], file: Path) -> None:
    """Draw a map of similarities for each arm; the diagonal is left blank."""
    size = 1.8 + 0.45 * max(len(similarity) for similarity in arms.values())
    figure = Figure(figsize=(size * len(arms) + 1, size), layout="constrained")
    for axes, (arm, similarity) in zip(figure.subplots(1, len(arms), squeeze=False)[0], arms.items(), strict=True):
        own = pd.DataFrame(False, index=similarity.index, columns=similarity.columns)
        for name in similarity.index:
            own.loc[name, name] = True
        written = len(similarity) <= 12
        sns.heatmap(similarity, mask=own, center=0, cmap="vlag", annot=written, fmt=".2f", square=True, ax=axes)
        axes.set_title(arm)
    save(figure, file)
