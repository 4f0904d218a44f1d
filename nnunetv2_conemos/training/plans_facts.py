"""Facts that a training writes into the plans, so that its network can be built again at prediction."""

from __future__ import annotations

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.training.method import Method


def facts_for_inference(table: SourceTable, method: Method | None = None) -> dict[str, object]:
    """Return what the plans must carry beside a checkpoint under the key `conemos`; `NetworkSpec` reads it.

    `untaught` names the labels that no case is annotated for (nor tagged, for a method that learns from tags): nothing
    is known about them, so they are never predicted.
    `groups` are the largest sets of labels annotated together. A method that is conditioned on the modality has
    `modalities`, and `only_modality` if every annotated case has the same.
    """
    conditioned = method is not None and method.modalities
    return {
        "labels": list(table.labels.names),
        "has_regions": table.labels.has_regions,
        "untaught": table.never_annotated(tags=method is not None and method.tags),
        "groups": table.groups(),
        "modalities": list(table.modalities) if conditioned else [],
        "only_modality": table.only_modality if conditioned else None,
    }
