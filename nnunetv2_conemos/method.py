"""The scientific content of a trainer in one record."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from pydantic import BaseModel, ValidationError
from torch import nn

from nnunetv2_conemos.sampling import Ask
from nnunetv2_conemos.sources import LabelSpace

LABELS_VARIABLE = "CONEMOS_LABELS"  # environment: comma-separated labels that prediction computes
PLANS_KEY = "conemos"  # in the plans: what inference must know; in a configuration of the plans: options of the method

Options = TypeVar("Options", bound=BaseModel)


@dataclass(frozen=True)
class Method:
    """What makes a method: everything else is nnU-Net's or the frame's.

    `network(plans, configuration, input channels, heads, deep supervision)` builds the network: `forward(Query)`
    answers the labels asked, [B,Q,*S]; `forward(Tensor)` answers all `heads` as nnU-Net wants them.
    `ask` says what is drawn and asked. `loss(ddp)` builds the loss of (logits [B,Q,*S], Truth) at one resolution.
    `regions`: whether the method allows labels that overlap.
    """

    network: Callable[[PlansManager, ConfigurationManager, int, int, bool], nn.Module]
    ask: Ask
    loss: Callable[[bool], nn.Module]
    regions: bool = True


def facts_for_inference(labels: LabelSpace, untaught: Sequence[str] = ()) -> dict[str, object]:
    """What the plans must carry beside a checkpoint so that the network can be built again from them.

    `untaught` names the labels that no case is annotated for: nothing is known about them, so they are never predicted.
    """
    return {"labels": list(labels.names), "has_regions": labels.has_regions, "untaught": list(untaught)}


def has_background_head(plans: PlansManager) -> bool:
    """Label mode has a background head, region mode has none; plans without facts are of label mode."""
    return not plans.plans.get(PLANS_KEY, {}).get("has_regions", False)


def answered_labels(plans: PlansManager, num_labels: int) -> tuple[int, ...]:
    """The labels (1..K) that prediction answers: those named in CONEMOS_LABELS, or all that were taught.

    Raises ValueError for a name that the model does not have, or that nobody annotated.
    """
    facts = plans.plans.get(PLANS_KEY, {})
    names = list(facts.get("labels", ()))
    taught = [name for name in names if name not in facts.get("untaught", ())]
    wanted = [name.strip() for name in os.environ.get(LABELS_VARIABLE, "").split(",") if name.strip()]
    unknown = [name for name in wanted if name not in taught]
    if unknown:
        raise ValueError(
            f"{LABELS_VARIABLE}: this model does not predict {', '.join(unknown)}. It predicts {', '.join(taught)}."
        )
    if not names:  # plans without facts
        return tuple(range(1, num_labels + 1))
    return tuple(names.index(name) + 1 for name in (wanted or taught))


def method_options(configuration: ConfigurationManager, model: type[Options]) -> Options:
    """Options of a plans configuration; raises ValueError that names the option and those that exist."""
    given = configuration.configuration.get(PLANS_KEY, {})
    try:
        return model.model_validate(given)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        known = ", ".join(model.model_fields)
        raise ValueError(f"`{PLANS_KEY}` of the plans configuration: {wrong}. Options are: {known}.") from None
