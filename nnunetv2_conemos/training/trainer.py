"""The base trainer between nnU-Net's trainer and a `Method`: methods that nnU-Net calls, in the order of the calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.helpers import dummy_context
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import autocast, nn

from nnunetv2_conemos.datasets.splits import SPLITS
from nnunetv2_conemos.networks.base import PartialLabelNetwork
from nnunetv2_conemos.networks.spec import PLANS_KEY, NetworkSpec
from nnunetv2_conemos.records import Query, Truth, move
from nnunetv2_conemos.training import preconditions, validation
from nnunetv2_conemos.training.annotated import AnnotatedDataset
from nnunetv2_conemos.training.ema import AveragedTrainer
from nnunetv2_conemos.training.finite import FiniteLossTrainer
from nnunetv2_conemos.training.folds import ready_split, supervised_parts, what_is_left_out, what_was_moved
from nnunetv2_conemos.training.method import Method
from nnunetv2_conemos.training.plans_facts import facts_for_inference
from nnunetv2_conemos.training.sampling import QueryDataset, location_keys, query_and_truth

CUDA = torch.device("cuda")


class PartialLabelTrainer(FiniteLossTrainer, AveragedTrainer):
    """nnU-Net's trainer on cases that are annotated for different labels.

    A subclass names its `method`; `settings` are nnU-Net's hyper-parameters, inherited and overridden by name.
    """

    learns_from_unlabelled: ClassVar[bool] = False  # from cases that are not annotated for anything
    mirroring = True  # of training patches and at prediction; mirrored, left and right organs look alike
    loss: Any
    optimizer: Any
    preprocessed_dataset_folder_base: str
    settings: ClassVar[dict[str, Any]] = {
        # Two thirds of the samples are centred on the queried label (nnU-Net: one third on any foreground): with one
        # queried label, most other patches show none of it. Chosen per sample, so that it holds for every batch size.
        "oversample_foreground_percent": 0.67,
        "probabilistic_oversampling": True,
    }

    def __init__(  # nnU-Net reads the signature
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = CUDA
    ):
        name = type(self).__name__
        # nnU-Net's __init__ creates the results folder: whatever cannot work is an error before that.
        self.table = preconditions.checked_table(self.method, plans, configuration, dataset_json, name)
        preconditions.settle_options(plans, configuration, self.method, name)
        self.check_data(plans, configuration)
        plans[PLANS_KEY] = facts_for_inference(self.table, self.method)
        if self.method.modalities:
            preconditions.require_same_facts(plans, configuration, name)
        super().__init__(plans, configuration, fold, dataset_json, device)
        apply_settings(self)

    def check_data(self, plans: dict, configuration: str) -> None:
        """Raise an error where the data do not fit the method; `self.table` is set, and nothing is written yet."""

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build the network; nnU-Net calls this at training and at prediction, where no trainer object exists."""
        counts = num_input_channels, num_output_channels, enable_deep_supervision
        return built_network(cls.method, NetworkSpec.from_plans(plans_manager, configuration_manager, *counts))

    def configure_optimizers(self) -> Any:
        """Return optimiser and schedule of the method, else nnU-Net's."""
        choose = self.method.optimiser
        chosen = choose and choose(self.network.parameters(), self.configuration_manager, self.num_epochs)
        return chosen or super().configure_optimizers()

    def _set_batch_size_and_oversample(self) -> None:
        share = self.oversample_foreground_percent
        super()._set_batch_size_and_oversample()
        self.oversample_foreground_percent = share  # chosen per sample, so ranks need no shares of their own

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, Any, Any, Any]:  # noqa: N802
        rotation, dummy_2d, patch_size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.mirroring:
            axes = self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, patch_size, axes

    def _build_loss(self) -> nn.Module:
        wrapped: Any = super()._build_loss()
        loss = self.method.loss(self.configuration_manager, self.is_ddp)
        if isinstance(wrapped, DeepSupervisionWrapper):
            wrapped.loss, loss = loss, wrapped  # keeps nnU-Net's weights of the scales
        return loss

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return nnU-Net's split, stratified by annotated labels where none exists yet; unlabelled cases only train."""
        splits_file = Path(self.preprocessed_dataset_folder_base) / SPLITS
        if self.fold != "all":
            if "sources" in self.dataset_json and ready_split(splits_file, self.table):
                self.print_to_log_file("Created a new 5-fold cross-validation split, stratified by annotated labels.")
            preconditions.require_fold(splits_file, self.fold, self.table)
        parts = supervised_parts(*super().do_split(), self.has_supervision, self.table)
        for message in what_was_moved(parts):
            self.print_to_log_file(message)
        for part, cases in (("train", parts.train), ("val", parts.val)):
            preconditions.require_supervised_case(filter(self.has_supervision, cases), part, self.fold, splits_file)
        return parts.train, parts.val

    def has_supervision(self, case: str) -> bool:
        """Return whether anything that the method learns from is known about a case."""
        return bool((self.table.known(case) | (self.table.tagged(case) & self.method.tags)).any())

    def get_tr_and_val_datasets(self) -> tuple[QueryDataset, QueryDataset]:
        train, validation = map(self.annotated_only, super().get_tr_and_val_datasets())
        learnt_from = (lambda _: True) if self.learns_from_unlabelled else self.has_supervision
        for message in what_is_left_out(train, self.table, self.method, learnt_from):
            self.print_to_log_file(message)
        return self.wrap_dataset(train), self.wrap_dataset(validation)

    def annotated_only(self, dataset: Any) -> AnnotatedDataset:
        """Wrap a dataset of nnU-Net's into one that shows annotated labels only."""
        return AnnotatedDataset(dataset, self.table, *location_keys(self.label_manager))

    def wrap_dataset(self, dataset: Any) -> QueryDataset:
        """Wrap a dataset into one that nnU-Net's loader samples queries from."""
        return QueryDataset(dataset, self.method.sampler, self.table, *location_keys(self.label_manager))

    def to_query_and_truth(self, batch: dict) -> tuple[Query, list[Truth] | Truth]:
        """Convert a sampled batch to its query and its ground truth."""
        return query_and_truth(self.method.sampler, batch, self.table)

    def train_step(self, batch: dict) -> dict:
        query, truth = self.to_query_and_truth(batch)
        report = self.checked(super().train_step({"data": query, "target": truth}), batch)
        self.update_average()
        return report

    def validation_step(self, batch: dict) -> dict:
        """Count hits and errors of the queried labels, [K] each, in one pass whatever K is."""
        query, truth = self.to_query_and_truth(batch)
        query, truth = query.to(self.device, non_blocking=True), move(truth, self.device)
        with self.precision():
            output = (self.average.model if self.average else self.network)(query)
            loss = self.loss(output, truth)
        counts = validation.counts_of(output, truth, self.table, exclusive=not self.method.regions)
        return self.checked({"loss": loss.detach().cpu().numpy(), **counts}, batch)

    def precision(self) -> Any:
        """Return the context of nnU-Net's mixed precision on a GPU, else an empty one."""
        return autocast("cuda") if self.device.type == "cuda" else dummy_context()

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log as nnU-Net does, unless no label was predicted or present: a NaN would end `checkpoint_best` for good."""
        if validation.anything_counted(val_outputs, self.device, self.is_ddp):
            return super().on_validation_epoch_end(val_outputs)
        return validation.repeat_last_dice(self.logger, val_outputs, self.current_epoch, len(self.table.labels))

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Run nnU-Net's final validation, then reduce its summary.json to annotated (case, label) pairs."""
        with self.averaged_weights():
            super().perform_actual_validation(save_probabilities)
        if self.local_rank == 0:
            file = Path(self.output_folder) / "validation" / "summary.json"
            summary = validation.annotated_summary(file, self.table, self.dataset_json["file_ending"])
            dice = summary["foreground_mean"]["Dice"]
            self.logger.log_summary("final_val/annotated_foreground_dice", dice)
            self.print_to_log_file("Mean Validation Dice on annotated labels: ", dice, also_print_to_console=True)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Load a checkpoint as nnU-Net does; raises SourceError where it was trained for other labels."""
        preconditions.require_checkpoint_of(filename_or_checkpoint, self.dataset_json["labels"])
        super().load_checkpoint(filename_or_checkpoint)


def built_network(method: Method, spec: NetworkSpec) -> PartialLabelNetwork:
    """Build the network of a method; raises NotImplementedError where labels shall leave early and cannot."""
    network = method.network(spec)
    if spec.skip_absent:
        network.leave_early()
    return network


def all_settings(trainer: type[PartialLabelTrainer]) -> dict[str, Any]:
    """Return the `settings` of all base classes; those of subclasses take precedence."""
    return {k: v for base in reversed(trainer.__mro__) for k, v in vars(base).get("settings", {}).items()}


def apply_settings(trainer: PartialLabelTrainer) -> None:
    """Set the hyper-parameters of `settings`; raises AttributeError for a name that nnU-Net's trainer does not have."""
    for name, value in all_settings(type(trainer)).items():
        if not hasattr(trainer, name):
            raise AttributeError(f"{type(trainer).__name__}.settings: nnU-Net's trainer has no '{name}'.")
        setattr(trainer, name, value)
