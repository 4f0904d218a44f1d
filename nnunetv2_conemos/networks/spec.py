"""Specification of a network, read from nnU-Net's plans, at training and at prediction alike."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from pydantic import BaseModel, ConfigDict, ValidationError

from nnunetv2_conemos.errors import InputError, describe
from nnunetv2_conemos.networks.planned import PlannedUNet, planned_unet
from nnunetv2_conemos.text_files import parse_json

PLANS_KEY = "conemos"  # in the plans: what inference must know; in a configuration of the plans: options of the method
LABELS_VARIABLE = "CONEMOS_LABELS"  # environment, for nnUNetv2_predict: labels to compute, a JSON list
MODALITY_VARIABLE = "CONEMOS_MODALITY"  # environment, for nnUNetv2_predict: the modality of the images
SKIP_VARIABLE = "CONEMOS_SKIP_ABSENT"  # environment, for nnUNetv2_predict: 1 lets absent labels leave early
UNKNOWN = "unknown"  # the modality of images whose modality the model was not trained on
RECORDED = "options_recorded"  # a fact in the plans: the configuration holds every option of the method


class MethodOptions(BaseModel):
    """Options of a method, under the key `conemos` of a plans configuration; without fields, a method has none.

    `earlier`: the defaults, where they were others, of models whose plans do not record all of their options.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    earlier: ClassVar[dict[str, Any]] = {}


Options = TypeVar("Options", bound=MethodOptions)


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that a method may use to build its network.

    Labels are numbered 1..K and modalities 1..; the modality 0 is unknown.
    """

    configuration: ConfigurationManager
    num_input_channels: int
    num_labels: int
    background_head: bool  # nnU-Net's heads begin with background in label mode, not in region mode
    deep_supervision: bool
    output_labels: tuple[int, ...]  # those that prediction computes
    groups: tuple[tuple[int, ...], ...]  # the sets of labels that training cases are annotated for
    modalities: tuple[str, ...]  # those of the training cases, for methods conditioned on the modality
    given_modality: str  # of images without one, as at prediction; for methods conditioned on it
    earlier_defaults: bool = False  # of the options: those of models that do not record theirs
    skip_absent: bool = False  # whether labels leave early at prediction

    @classmethod
    def from_plans(
        cls,
        plans: PlansManager,
        configuration: ConfigurationManager,
        num_input_channels: int,
        num_heads: int,
        deep_supervision: bool,
    ) -> NetworkSpec:
        """Read the arguments of `build_network_architecture`, and the variables that begin with CONEMOS_.

        Plans without facts of this package are of label mode, with all labels annotated together. Raises ValueError for
        labels that the model does not have, and for a value that a variable cannot have.
        """
        facts = plans.plans.get(PLANS_KEY, {})
        background = not facts.get("has_regions", False)
        num_labels = num_heads - background
        everything = tuple(range(1, num_labels + 1))
        names = list(facts.get("labels", ()))
        groups = tuple(tuple(names.index(name) + 1 for name in group) for group in facts.get("groups", ()))
        return cls(
            configuration,
            num_input_channels,
            num_labels,
            background,
            deep_supervision,
            output_labels=output_labels(facts) or everything,
            groups=groups or (everything,),
            modalities=known_modalities(plans),
            given_modality=os.environ.get(MODALITY_VARIABLE, "").strip() or facts.get("only_modality") or UNKNOWN,
            earlier_defaults=before_records(plans.plans),
            skip_absent=skip_of_variable(os.environ.get(SKIP_VARIABLE, "")),
        )

    @property
    def modality(self) -> int:
        """The modality (1..) of images that come without one, or 0; raises ValueError for an unknown name."""
        if self.given_modality not in (*self.modalities, UNKNOWN):
            known = ", ".join(self.modalities) or "none"
            raise InputError(
                f"{MODALITY_VARIABLE}: this model knows no modality '{self.given_modality}'. It knows {known}."
            )
        return self.modalities.index(self.given_modality) + 1 if self.given_modality in self.modalities else 0

    def options(self, model: type[Options]) -> Options:
        """Return the options of the plans configuration; raises ValueError for one that the method does not have."""
        return method_options(self.configuration, model, self.earlier_defaults)

    def planned_unet(
        self, num_outputs: int, *, num_input_channels: int | None = None, deep_supervision: bool | None = None
    ) -> PlannedUNet:
        """Build the U-Net of the plans with this number of output channels.

        Raises NotImplementedError where the plans name another network.
        """
        return planned_unet(
            self.configuration,
            self.num_input_channels if num_input_channels is None else num_input_channels,
            num_outputs,
            self.deep_supervision if deep_supervision is None else deep_supervision,
        )


def output_labels(facts: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the labels (1..K) that prediction computes, ascending: those of CONEMOS_LABELS, or all annotated ones.

    Raises ValueError for a name that the model does not have, or that was annotated in no training case.
    """
    names = list(facts.get("labels", ()))
    supervised = [name for name in names if name not in facts.get("untaught", ())]
    wanted = labels_of_variable(os.environ.get(LABELS_VARIABLE, ""))
    unknown = [name for name in wanted if name not in supervised]
    if unknown:
        raise InputError(
            f"{LABELS_VARIABLE}: this model does not predict {', '.join(unknown)}. It predicts {', '.join(supervised)}."
        )
    return tuple(sorted({names.index(name) + 1 for name in (wanted or supervised)}))


def labels_of_variable(text: str) -> list[str]:
    """Return the names in CONEMOS_LABELS, none where it is empty; raises ValueError for anything but a JSON list."""
    if not text.strip():
        return []
    names = parse_json(text, LABELS_VARIABLE) if text.strip().startswith("[") else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        example = json.dumps(["liver", "kidney, left"])
        raise InputError(f"{LABELS_VARIABLE}: expected a JSON list of names, as '{example}', found {text!r:.80}.")
    return names


def skip_of_variable(text: str) -> bool:
    """Return whether CONEMOS_SKIP_ABSENT is 1; raises ValueError for anything but 1, 0 and nothing."""
    if text.strip() not in ("", "0", "1"):
        raise InputError(f"{SKIP_VARIABLE}: expected 1 or 0, found {text!r:.80}.")
    return text.strip() == "1"


def known_modalities(plans: PlansManager) -> tuple[str, ...]:
    """Return the names of the modalities that a model is conditioned on; the first has the number 1."""
    return tuple(plans.plans.get(PLANS_KEY, {}).get("modalities", ()))


def before_records(plans: Mapping[str, Any]) -> bool:
    """Return whether the plans are those of a model that was trained before options were recorded."""
    return PLANS_KEY in plans and not plans[PLANS_KEY].get(RECORDED, False)


def method_options(configuration: ConfigurationManager, model: type[Options], earlier: bool = False) -> Options:
    """Return the options of a plans configuration; raises ValueError that names the wrong one and those that exist.

    `earlier`: with the defaults of models that do not record their options.
    """
    given = configuration.configuration.get(PLANS_KEY) or {}
    try:
        return model.model_validate({**model.earlier, **given} if earlier else given)
    except ValidationError as error:
        known = ", ".join(model.model_fields) or "none"
        where = f"`{PLANS_KEY}` of the plans configuration"
        raise InputError(f"{where}: {describe(error)}. Options are: {known}.") from None
