"""The frame between nnU-Net's trainer and a `Method`: the only file that subclasses nnUNetTrainer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import dummy_context
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import autocast, nn
from torch import distributed as dist

from nnunetv2_conemos.datasets.folders import preprocessed_table, require_same_tables
from nnunetv2_conemos.datasets.splits import stratified_split
from nnunetv2_conemos.errors import shorten
from nnunetv2_conemos.files import write_aside, write_json
from nnunetv2_conemos.records import Query, Truth, move, to_truth
from nnunetv2_conemos.training.ema import MovingAverage
from nnunetv2_conemos.training.method import Method
from nnunetv2_conemos.training.plans_facts import PLANS_KEY, facts_for_inference
from nnunetv2_conemos.training.preconditions import (
    require_dimension,
    require_fold,
    require_labels_of_folder,
    require_no_cascade,
    require_no_prediction_variables,
    require_regions_supported,
    require_same_facts,
    require_same_labels,
    require_supervised_case,
    require_supervision,
)
from nnunetv2_conemos.training.sampling import QueryDataset, queried_labels
from nnunetv2_conemos.training.validation import annotated_summary, hard_counts, likeliest_alone


class PartialLabelTrainer(nnUNetTrainer):
    """nnU-Net's trainer on cases that are annotated for different labels.

    A subclass names its `method`; `settings` are nnU-Net's hyper-parameters, inherited and overridden by name.
    """

    method: ClassVar[Method]
    learns_from_unlabelled: ClassVar[bool] = False  # from cases that are not annotated for anything
    mirroring = True  # of training patches and at prediction; mirrored, left and right organs look alike
    network: Any
    loss: Any
    optimizer: Any
    output_folder: str
    preprocessed_dataset_folder_base: str
    settings: ClassVar[dict[str, Any]] = {
        # Two thirds of the samples are centred on the label asked (nnU-Net: one third on any foreground): with one
        # label asked, most other patches show none of it. Drawn per sample, so that it holds for every batch size.
        "oversample_foreground_percent": 0.67,
        "probabilistic_oversampling": True,
    }

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net reads the signature)
    ):
        # nnU-Net's __init__ creates the results folder: whatever cannot work is refused before.
        require_no_prediction_variables(self.method)
        require_no_cascade(plans, configuration, type(self).__name__)
        require_dimension(self.method, plans, configuration, type(self).__name__)
        require_regions_supported(self.method, dataset_json, type(self).__name__)
        require_same_tables(plans["dataset_name"])
        require_labels_of_folder(plans, configuration, type(self).__name__, dataset_json)
        self.table = preprocessed_table(plans, configuration, dataset_json)
        require_supervision(self.method, self.table, type(self).__name__)
        self.check_data(plans, configuration)
        plans[PLANS_KEY] = facts_for_inference(self.table, self.method)
        if self.method.modalities:
            require_same_facts(plans, configuration, type(self).__name__)
        super().__init__(plans, configuration, fold, dataset_json, device)
        for name, value in self._all_settings().items():
            if not hasattr(self, name):
                raise AttributeError(f"{type(self).__name__}.settings: nnU-Net's trainer has no '{name}'.")
            setattr(self, name, value)
        self.average: MovingAverage | None = None

    def check_data(self, plans: dict, configuration: str) -> None:
        """Raise where the data do not fit the method; `self.table` is there, and nothing has been written yet."""

    @classmethod
    def _all_settings(cls) -> dict[str, Any]:
        return {k: v for base in reversed(cls.__mro__) for k, v in vars(base).get("settings", {}).items()}

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Called by nnU-Net at training and at prediction, where no trainer object exists."""
        return cls.method.network(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )

    def initialize(self) -> None:
        super().initialize()
        if self.method.averaging is not None:
            self.average = MovingAverage(self.bare_network, self.method.averaging)

    @property
    def bare_network(self) -> Any:
        """The network without the wrappers of DDP and torch.compile."""
        network = self.network.module if self.is_ddp else self.network
        return getattr(network, "_orig_mod", network)

    def configure_optimizers(self) -> Any:
        """Those of the method, where it has its own, else nnU-Net's."""
        choose = self.method.optimiser
        chosen = choose and choose(self.network.parameters(), self.configuration_manager, self.num_epochs)
        return chosen or super().configure_optimizers()

    def _set_batch_size_and_oversample(self) -> None:
        share = self.oversample_foreground_percent
        super()._set_batch_size_and_oversample()
        self.oversample_foreground_percent = share  # drawn per sample, so ranks need no shares of their own

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, Any, Any, Any]:  # noqa: N802
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if not self.mirroring:
            mirror_axes = self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, initial_patch_size, mirror_axes

    def _build_loss(self) -> nn.Module:
        wrapped: Any = super()._build_loss()
        loss = self.method.loss(self.is_ddp)
        if not isinstance(wrapped, DeepSupervisionWrapper):
            return loss
        wrapped.loss = loss  # keeps nnU-Net's weights of the scales
        return wrapped

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's, on a split stratified by annotated labels where none exists; unlabelled cases only train."""
        splits_file = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        if self.fold != "all" and "sources" in self.dataset_json and not splits_file.is_file():
            self.print_to_log_file("Creating new 5-fold cross-validation split, stratified by annotated labels...")
            write_json(splits_file, stratified_split(self.table))
        require_fold(splits_file, self.fold)
        train, validation = (list(map(str, cases)) for cases in super().do_split())
        unlabelled = [case for case in validation if not self.has_supervision(case)]
        if unlabelled:
            self.print_to_log_file(f"Unlabelled validation cases are used for training only: {shorten(unlabelled)}.")
        validation = [case for case in validation if case not in unlabelled]
        for part, cases in (("train", train), ("val", validation)):
            require_supervised_case(filter(self.has_supervision, cases), part, self.fold, splits_file)
        return [*train, *(case for case in unlabelled if case not in train)], validation

    def get_tr_and_val_datasets(self) -> tuple[QueryDataset, QueryDataset]:
        train, validation = super().get_tr_and_val_datasets()
        self._log_never_annotated(train.identifiers)
        self._log_left_out(train.identifiers)
        self._log_unannotated_values(train)
        return self.wrap_dataset(train), self.wrap_dataset(validation)

    def wrap_dataset(self, dataset: Any) -> QueryDataset:
        """What nnU-Net's loader draws from, of a dataset of nnU-Net's."""
        manager = self.label_manager
        keys = manager.foreground_regions if manager.has_regions else np.array(manager.foreground_labels).tolist()
        always = [(-1, *np.array(manager.all_labels).tolist())] if manager.has_ignore_label else []
        return QueryDataset(dataset, self.method.sampler, self.table, keys, always)

    def has_supervision(self, case: str) -> bool:
        """Whether anything is known about a case that the method learns from."""
        return bool((self.table.known(case) | (self.table.tagged(case) & self.method.tags)).any())

    def _log_never_annotated(self, cases: list[str]) -> None:
        never_annotated = self.table.never_annotated(cases, self.method.tags)
        if never_annotated:
            self.print_to_log_file(
                f"No training case of this fold is annotated for {shorten(never_annotated)}: never taught."
            )

    def _log_left_out(self, cases: list[str]) -> None:
        unlabelled = [case for case in cases if not self.has_supervision(case)]
        if unlabelled and not self.learns_from_unlabelled:
            self.print_to_log_file(f"Not annotated for anything, so never drawn: {shorten(unlabelled)}.")
        unknown = [case for case in cases if not self.table.modality_of(case)]
        if unknown and self.method.modalities:
            self.print_to_log_file(f"`modality` is not declared, so taken as unknown: {shorten(unknown)}.")

    def _log_unannotated_values(self, dataset: Any) -> None:
        """Say in one line which cases hold labels they are not annotated for; such voxels teach nothing."""
        stray = []
        for case in dataset.identifiers:
            allowed = self.table.allowed_values(case) | {-1}
            locations = dataset.load_case(case)[3]["class_locations"]
            if any(len(where) and allowed.isdisjoint(np.atleast_1d(key)) for key, where in locations.items()):
                stray.append(case)
        if stray:
            self.print_to_log_file(f"Values of labels that were not annotated are left out, in {shorten(stray)}.")

    def to_query_and_truth(self, batch: dict) -> tuple[Query, list[Truth] | Truth]:
        """Turn a drawn batch into what is asked and what is known, on this trainer's device."""
        queried = queried_labels(self.method.sampler, batch["keys"], self.table)
        target, ignore = batch["target"], self.table.labels.ignore
        query = Query(batch["data"], queried.labels, queried.modality)
        if isinstance(target, list):
            return query, [to_truth(t, queried, ignore) for t in target]
        return query, to_truth(target, queried, ignore)

    def train_step(self, batch: dict) -> dict:
        query, truth = self.to_query_and_truth(batch)
        report = super().train_step({"data": query, "target": truth})
        if self.average:
            self.average.update()
        return report

    def validation_step(self, batch: dict) -> dict:
        """Hard counts of the labels asked, [K] each: one pass whatever K is."""
        query, truth = self.to_query_and_truth(batch)
        query = query.to(self.device, non_blocking=True)
        truth = move(truth, self.device)
        with autocast(self.device.type, enabled=True) if self.device.type == "cuda" else dummy_context():
            output = (self.average.model if self.average else self.network)(query)
            loss = self.loss(output, truth)
        finest = truth if isinstance(truth, Truth) else truth[0]
        logits = output if isinstance(output, torch.Tensor) else output[0]  # the finest scale, or without the modality
        if not self.method.regions:
            logits = likeliest_alone(logits, (np.flatnonzero(~self.table.supervised()) + 1).tolist())
        tp, fp, fn = hard_counts(logits, finest, len(self.table.labels)).cpu().numpy()
        return {"loss": loss.detach().cpu().numpy(), "tp_hard": tp, "fp_hard": fp, "fn_hard": fn}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """nnU-Net's, unless no label was predicted or present: a NaN there would end `checkpoint_best` for good."""
        seen = float(sum(o[key].sum() for o in val_outputs for key in ("tp_hard", "fp_hard", "fn_hard")))
        if self.is_ddp:
            everywhere = torch.tensor(seen, device=self.device)
            dist.all_reduce(everywhere)
            seen = everywhere.item()
        if seen > 0:
            return super().on_validation_epoch_end(val_outputs)
        previous = self.logger.get_value("mean_fg_dice", step=None)
        self.logger.log("mean_fg_dice", previous[-1] if previous else 0.0, self.current_epoch)
        self.logger.log("dice_per_class_or_region", [float("nan")] * len(self.table.labels), self.current_epoch)
        self.logger.log("val_losses", np.mean([o["loss"] for o in val_outputs]), self.current_epoch)
        return None

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's final validation; its summary.json is then reduced to annotated (case, label) pairs."""
        with self.averaged_weights():
            super().perform_actual_validation(save_probabilities)
        if self.local_rank == 0:
            file = Path(self.output_folder) / "validation" / "summary.json"
            summary = annotated_summary(file, self.table, self.dataset_json["file_ending"])
            dice = summary["foreground_mean"]["Dice"]
            self.logger.log_summary("final_val/annotated_foreground_dice", dice)
            self.print_to_log_file("Mean Validation Dice on annotated labels: ", dice, also_print_to_console=True)

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Within, the network holds the moving average of its weights, where the method has one."""
        return self.average.in_place() if self.average else nullcontext()

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's, with averaged weights where the method has them, and those of the training beside them."""
        if not self.average or self.local_rank != 0 or self.disable_checkpointing:
            return super().save_checkpoint(filename)
        average, nnunets = self.average, super().save_checkpoint

        def write(aside: Path) -> None:
            with average.in_place():
                nnunets(str(aside))
            average.add_training(aside)

        return write_aside(Path(filename), write)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Raises SourceError where the checkpoint was trained for other labels."""
        checkpoint = filename_or_checkpoint
        if isinstance(checkpoint, str):
            checkpoint = torch.load(checkpoint, map_location="cpu", weights_only=False)
        theirs = checkpoint["init_args"]["dataset_json"]["labels"]
        require_same_labels(theirs, self.dataset_json["labels"], str(filename_or_checkpoint))
        super().load_checkpoint(filename_or_checkpoint)
        if self.average:
            self.average.resume(checkpoint)
