"""Facts that a training writes into the plans, so that its network can be built again at prediction."""

from __future__ import annotations

from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.networks.spec import RECORDED, before_records, method_options
from nnunetv2_conemos.training.method import Method


def facts_for_inference(table: SourceTable, method: Method | None = None) -> dict[str, object]:
    """Return what the plans must carry beside a checkpoint under the key `conemos`; `NetworkSpec` reads it.

    `untaught` names the labels that no case is annotated for (nor tagged, for a method that learns from tags): nothing
    is known about them, so they are never predicted.
    `groups` are the largest sets of labels annotated together. A method that is conditioned on the modality has
    `modalities`, and `only_modality` if every annotated case has the same. RECORDED: the configuration holds every
    option of the method.
    """
    conditioned = method is not None and method.modalities
    return {
        RECORDED: True,
        "labels": list(table.labels.names),
        "has_regions": table.labels.has_regions,
        "untaught": table.never_annotated(tags=method is not None and method.tags),
        "groups": table.groups(),
        "modalities": list(table.modalities) if conditioned else [],
        "only_modality": table.only_modality if conditioned else None,
    }


def all_options(plans: dict[str, Any], configuration: str, method: Method) -> dict[str, Any]:
    """Return the options of a configuration, defaults included; raises InputError for one that does not exist."""
    chosen = PlansManager(plans).get_configuration(configuration)
    return method_options(chosen, method.options, before_records(plans)).model_dump(mode="json")
