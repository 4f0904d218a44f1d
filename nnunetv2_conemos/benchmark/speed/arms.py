"""One arm: a real trainer on random data; its training step, and one tile as nnU-Net's predictor computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import Tensor, nn

from nnunetv2_conemos.benchmark.speed.compiled import GraphCounter
from nnunetv2_conemos.benchmark.speed.world import plans_for
from nnunetv2_conemos.errors import InputError
from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.training.trainer import PartialLabelTrainer

ALL: Any = "all"  # the fold of all cases, which upstream types as a number
DRAWS = 30  # of a batch; the one that queries most labels is kept


def trainer_class(name: str) -> type[nnUNetTrainer]:
    """Find a trainer as nnU-Net does; raises ValueError for a name that no trainer has."""
    try:
        found = recursive_find_trainer_class_by_name(name)
    except RuntimeError:
        found = None
    if found is None:
        raise InputError(f"arms: there is no trainer '{name}'. `conemos env` lists where nnU-Net looks for them.")
    return found


class Arm:
    """A trainer after `initialize`, with one batch of random data that its steps are repeated on."""

    def __init__(self, name: str, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], device: str):
        self.name, self.device = name, torch.device(device)
        make = trainer_class(name)
        given = plans_for(plans, plans["dataset_name"])
        self.trainer: Any = make(given, configuration, ALL, dataset_json, self.device)
        self.trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()  # chooses the axes of mirroring
        self.trainer.initialize()
        self.batch = random_batch(self.trainer)
        self.compiled = GraphCounter()
        self.trainable = not getattr(make, "learns_from_unlabelled", False)

    @property
    def bare(self) -> nn.Module:
        """The network without torch.compile."""
        return getattr(self.trainer.network, "_orig_mod", self.trainer.network)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.bare.parameters())

    def step(self) -> None:
        """Take nnU-Net's training step: forward, loss, backward, clipping of gradients, optimiser."""
        self.trainer.set_deep_supervision_enabled(self.trainer.enable_deep_supervision)
        self.trainer.network.train()
        with self.compiled:
            self.trainer.train_step(self.batch)

    def tile(self) -> None:
        """Answer all labels in one patch, as nnUNetv2_predict does: no mirroring, mixed precision on a GPU."""
        self.trainer.set_deep_supervision_enabled(False)
        self.bare.eval()
        image = self.batch["data"][:1].to(self.device)
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            self.bare(image)

    def save(self) -> Path:
        """Write the model folder that nnUNetv2_predict reads; return it."""
        folder = Path(str(self.trainer.output_folder_base))
        write_json(folder / "plans.json", self.trainer.plans_manager.plans)
        write_json(folder / "dataset.json", self.trainer.dataset_json)
        self.trainer.save_checkpoint(str(Path(str(self.trainer.output_folder)) / "checkpoint_final.pth"))
        return folder


def random_batch(trainer: Any) -> dict[str, Any]:
    """Return a batch as nnU-Net's loader gives it: noise, random labels, and the identifiers of a method's sampler."""
    configuration, rng = trainer.configuration_manager, np.random.default_rng(0)
    size = (trainer.batch_size, trainer.num_input_channels, *configuration.patch_size)
    labels = len(trainer.dataset_json["labels"])
    data = torch.randn(size, generator=torch.Generator().manual_seed(0))
    target = torch.randint(labels, (size[0], 1, *size[2:]), generator=torch.Generator().manual_seed(1)).to(torch.int16)
    keys = widest_identifiers(trainer, rng) if isinstance(trainer, PartialLabelTrainer) else None
    scales = trainer._get_deep_supervision_scales()
    return {"data": data, "target": target if scales is None else downsampled(target, scales), "keys": keys}


def widest_identifiers(trainer: PartialLabelTrainer, rng: np.random.Generator) -> list[str]:
    """Draw batches of identifiers, and return the one that queries most labels."""
    sampler, table = trainer.method.sampler, trainer.table
    identifiers = sampler.identifiers(table, table.cases)
    draws = [rng.choice(identifiers, trainer.batch_size).tolist() for _ in range(DRAWS)]
    return max(draws, key=lambda drawn: max(len(sampler.parse(one, table).queried) for one in drawn))


def downsampled(target: Tensor, scales: list[list[float]]) -> list[Tensor]:
    """Return the label map at the resolutions of deep supervision."""
    sizes = [[round(s * side) for s, side in zip(scale, target.shape[2:], strict=True)] for scale in scales]
    return [F.interpolate(target.float(), size=size, mode="nearest").to(target.dtype) for size in sizes]
