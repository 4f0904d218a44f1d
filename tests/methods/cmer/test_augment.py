"""Transforms that are the same for images and for maps."""

import pytest
import torch
import torch.nn.functional as F

from nnunetv2_conemos.methods.cmer import augment as warps
from nnunetv2_conemos.methods.cmer.loss import (
    Seen,
    Tags,
    equivariance,
)

IMAGE = F.interpolate(torch.rand(4, 2, 6, 6, generator=torch.Generator().manual_seed(0)), (48, 48), mode="bicubic")


@pytest.mark.parametrize("family", warps.FAMILIES)
def test_a_pointwise_network_is_equivariant_and_a_mismatch_is_seen(family):
    torch.manual_seed(2)
    warp, other = (warps.drawn([family], 4, (48, 48)) for _ in range(2))
    while str(other) == str(warp) or (family == "flip" and other.axis == warp.axis):
        other = warps.drawn([family], 4, (48, 48))
    maps = (IMAGE * 0.3)[:, :, None]  # [B,M,K,H,W]
    warped, of_warped = warp(maps), (warp(IMAGE) * 0.3)[:, :, None]
    tags = Tags(torch.ones(4, 1).bool(), torch.ones(4, 1).bool())
    logits = torch.zeros(4, 2, 1, 2)
    assert equivariance(Seen(logits, logits, warped, of_warped), tags).max() < 1e-10
    if warped.shape == other(maps).shape:
        assert equivariance(Seen(logits, logits, other(maps), of_warped), tags).min() > 1e-4


def test_rotations_are_exact_and_drawn_per_sample():
    turned = warps.Rotation((1, 2, 3, 1))(IMAGE)
    assert torch.equal(turned[2], torch.rot90(IMAGE[2], 3, (1, 2)))
    assert torch.equal(warps.Rotation((3, 2, 1, 3))(turned), IMAGE)
    assert warps.drawn(["rotation"], 2, (16, 24)).times == (2, 2)
    assert len(set(warps.drawn(["rotation"], 64, (16, 16)).times)) == 3


def test_translations_move_the_content_down_and_right_and_fill_with_zeros():
    shifts = torch.tensor([[0.25, 0.0], [0.0, -0.25], [0.25, 0.5], [0.0, 0.0]])
    moved = warps.Translation(shifts)(IMAGE)
    assert torch.allclose(moved[0, :, 12:], IMAGE[0, :, :36], atol=1e-5)
    assert moved[0, :, :11].abs().max() == 0
    assert torch.allclose(moved[1, :, :, :36], IMAGE[1, :, :, 12:], atol=1e-5)
    assert torch.allclose(moved[2, :, 12:, 24:], IMAGE[2, :, :36, :24], atol=1e-5)
    assert torch.allclose(moved[3], IMAGE[3], atol=1e-5)


def test_every_family_is_drawn_and_sizes_are_those_published():
    torch.manual_seed(0)
    found = [warps.drawn(warps.FAMILIES, 2, (240, 240)) for _ in range(400)]
    kinds = [type(warp) for warp in found]
    assert all(70 < kinds.count(kind) < 130 for kind in (warps.Flip, warps.Rotation, warps.Translation, warps.Scaling))
    sides = {warp.size[0] for warp in found if isinstance(warp, warps.Scaling)}
    assert sides == set(range(192, 289, 8))
    shifts = torch.cat([warp.shifts for warp in found if isinstance(warp, warps.Translation)])
    assert 0.25 < shifts.abs().max() <= 0.3
