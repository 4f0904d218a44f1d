"""Plans as nnU-Net would write them, small enough for tests: dimension x architecture, label or region mode."""

from __future__ import annotations

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.networks.spec import PLANS_KEY, NetworkSpec
from nnunetv2_conemos.training.plans_facts import facts_for_inference

UNETS = "dynamic_network_architectures.architectures.unet."
LABELS = {"background": 0, "a": 1, "b": 2, "c": 3}
REGIONS = {"background": 0, "whole": [1, 2, 3], "body": [2, 3], "core": 3}
KINDS = {"plain": ("PlainConvUNet", "n_conv_per_stage"), "residual": ("ResidualEncoderUNet", "n_blocks_per_stage")}


def architecture(dim: int, kind: str, anisotropic: bool = False, features: tuple[int, ...] = (4, 6, 8)) -> dict:
    name, repeats = KINDS[kind]
    strides = [[1] * dim, [2] * dim, [2] * dim]
    kernels = [[3] * dim for _ in strides]
    if anisotropic:
        strides[1][0], kernels[0][0] = 1, 1
    return {
        "network_class_name": UNETS + name,
        "arch_kwargs": {
            "n_stages": 3,
            "features_per_stage": list(features),
            "conv_op": f"torch.nn.modules.conv.Conv{dim}d",
            "kernel_sizes": kernels,
            "strides": strides,
            repeats: [1, 2, 2],
            "n_conv_per_stage_decoder": [2, 1],
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dim}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def plans(
    dim: int = 2,
    kind: str = "plain",
    labels: dict = LABELS,
    anisotropic: bool = False,
    features: tuple[int, ...] = (4, 6, 8),
    **options,
) -> PlansManager:
    """Plans with one configuration `tiny`; `options` go under its `conemos` key."""
    configuration = {
        "architecture": architecture(dim, kind, anisotropic, features),
        "patch_size": patch(dim),
        "batch_size": 2,
        PLANS_KEY: options,
    }
    facts = facts_for_inference(SourceTable.from_dataset_json({"labels": labels}, ["case"]))
    return PlansManager({"configurations": {"tiny": configuration}, PLANS_KEY: facts, "plans_name": "plans"})


def patch(dim: int) -> list[int]:
    return [16] * dim


def heads(labels: dict) -> int:
    space = LabelSpace.from_dataset_json({"labels": labels})
    return len(space) + (not space.has_regions)


def build(trainer: type, manager: PlansManager, labels: dict = LABELS, channels: int = 1, deep: bool = True):
    """The network of a trainer, as nnU-Net builds it: from plans and counts alone."""
    return trainer.build_network_architecture(manager, manager.get_configuration("tiny"), channels, heads(labels), deep)


def network_spec(num_labels: int, channels: int = 1, dim: int = 2) -> NetworkSpec:
    """What a network is built from, for labels without a story."""
    labels = {"background": 0, **{f"l{k}": k for k in range(1, num_labels + 1)}}
    manager = plans(dim, labels=labels)
    return NetworkSpec.from_plans(manager, manager.get_configuration("tiny"), channels, num_labels + 1, True)


def moved_network(trainer: type, dim: int = 2, kind: str = "plain", **options):
    """The seeded network of a trainer with every parameter moved, so that no initial zero hides a mistake."""
    torch.manual_seed(0)
    made = build(trainer, plans(dim, kind, **options))
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made
