"""The scientific content of a trainer in one record."""

from __future__ import annotations

import os
from typing import TypeVar

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from pydantic import BaseModel, ValidationError

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.errors import describe
from nnunetv2_conemos.training.method import Method

LABELS_VARIABLE = "CONEMOS_LABELS"  # environment: comma-separated labels that prediction computes
MODALITY_VARIABLE = "CONEMOS_MODALITY"  # environment: the modality of the images that are predicted
UNKNOWN = "unknown"  # value of it for images of any other modality
PLANS_KEY = "conemos"  # in the plans: what inference must know; in a configuration of the plans: options of the method
Options = TypeVar("Options", bound=BaseModel)


def facts_for_inference(table: SourceTable, method: Method | None = None) -> dict[str, object]:
    """What the plans must carry beside a checkpoint so that the network can be built again from them.

    `untaught` names the labels that no case is annotated for (nor tagged, for a method that learns from tags): nothing
    is known about them, so they are never predicted.
    `groups` are the largest sets of labels annotated together. A method that looks at the modality has `modalities`,
    those that the network is told, and `only_modality`, if every annotated case has the same.
    """
    told = method is not None and method.modalities
    return {
        "labels": list(table.labels.names),
        "has_regions": table.labels.has_regions,
        "untaught": table.never_annotated(tags=method is not None and method.tags),
        "groups": table.groups(),
        "modalities": list(table.modalities) if told else [],
        "only_modality": table.only_modality if told else None,
    }


def has_background_head(plans: PlansManager) -> bool:
    """Label mode has a background head, region mode has none; plans without facts are of label mode."""
    return not plans.plans.get(PLANS_KEY, {}).get("has_regions", False)


def output_labels_of(plans: PlansManager, num_labels: int) -> tuple[int, ...]:
    """The labels (1..K) that prediction answers: those named in CONEMOS_LABELS, or all that were taught.

    Raises ValueError for a name that the model does not have, or that nobody annotated.
    """
    facts = plans.plans.get(PLANS_KEY, {})
    names = list(facts.get("labels", ()))
    supervised = [name for name in names if name not in facts.get("untaught", ())]
    wanted = [name.strip() for name in os.environ.get(LABELS_VARIABLE, "").split(",") if name.strip()]
    unknown = [name for name in wanted if name not in supervised]
    if unknown:
        raise ValueError(
            f"{LABELS_VARIABLE}: this model does not predict {', '.join(unknown)}. It predicts {', '.join(supervised)}."
        )
    if not names:  # plans without facts
        return tuple(range(1, num_labels + 1))
    return tuple(names.index(name) + 1 for name in (wanted or supervised))


def label_groups(plans: PlansManager, num_labels: int) -> list[list[int]]:
    """The labels (1..K) of each group that training cases are annotated for; all, in plans without facts."""
    facts = plans.plans.get(PLANS_KEY, {})
    names = list(facts.get("labels", ()))
    groups = [[names.index(name) + 1 for name in group] for group in facts.get("groups", ())]
    return groups or [list(range(1, num_labels + 1))]


def known_modalities(plans: PlansManager) -> list[str]:
    """Names of the modalities that a model was told; the first has the number 1."""
    return list(plans.plans.get(PLANS_KEY, {}).get("modalities", ()))


def chosen_modality(plans: PlansManager) -> int:
    """The modality (1..) of the images to predict: CONEMOS_MODALITY, else that of all training cases, else 0 (unknown).

    Raises ValueError for a name that the model was not told in training.
    """
    names, wanted = known_modalities(plans), os.environ.get(MODALITY_VARIABLE, "").strip()
    wanted = wanted or plans.plans.get(PLANS_KEY, {}).get("only_modality") or UNKNOWN
    if wanted not in (*names, UNKNOWN):
        raise ValueError(
            f"{MODALITY_VARIABLE}: this model knows no modality '{wanted}'. It knows {', '.join(names) or 'none'}."
        )
    return names.index(wanted) + 1 if wanted in names else 0


def method_options(configuration: ConfigurationManager, model: type[Options]) -> Options:
    """Options of a plans configuration; raises ValueError that names the option and those that exist."""
    given = configuration.configuration.get(PLANS_KEY, {})
    try:
        return model.model_validate(given)
    except ValidationError as error:
        known = ", ".join(model.model_fields)
        where = f"`{PLANS_KEY}` of the plans configuration"
        raise ValueError(f"{where}: {describe(error)}. Options are: {known}.") from None
