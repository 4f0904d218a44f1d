"""Strong views, boxes of another image, and quarter turns."""

import pytest
import torch

from nnunetv2_conemos.methods.unimos import augment


def test_strong_views_differ_and_keep_geometry_and_range():
    torch.manual_seed(0)
    image = 0.1 * torch.randn(4, 2, 8, 20, 20) - 3
    image[:, :, 4, 10, 10] = 5.0  # a landmark
    first, second = augment.photometric(image), augment.photometric(image)
    assert not torch.allclose(first, second)
    changed = [not torch.allclose(a, b, atol=1e-4) for a, b in zip(first, image, strict=True)]
    assert sum(changed) >= 3
    for view in (first, second):
        assert (view.amax((2, 3, 4)) <= image.amax((2, 3, 4)) + 1e-4).all()
        assert (view.amin((2, 3, 4)) >= image.amin((2, 3, 4)) - 1e-4).all()
        peak = view[:, :, 4].flatten(2).argmax(2)
        assert (peak == 10 * 20 + 10).all()


@pytest.mark.parametrize("size", [(40, 40), (12, 20, 30), (5, 40, 40)])
def test_boxes_have_the_drawn_share_and_lie_inside(size):
    torch.manual_seed(0)
    inside = augment.cutmix_boxes(torch.Size((60, 3, *size)), torch.device("cpu"))
    assert inside.shape == (60, 1, *size)
    shares = inside.flatten(1).float().mean(1)
    assert 0.01 < shares.min() < 0.1
    assert 0.3 < shares.max() < 0.5
    for sample in inside[:10, 0]:
        where = sample.nonzero()
        corner, end = where.amin(0), where.amax(0) + 1
        assert len(where) == (end - corner).prod(), "a box"
    assert len({tuple(sample.nonzero().amin(0).tolist()) for sample in inside[:, 0]}) > 20, "one per sample"


def test_cutmix_takes_the_boxes_from_the_other_and_changes_neither():
    own, other = torch.zeros(2, 1, 6, 6), torch.ones(2, 1, 6, 6)
    inside = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    inside[:, :, 1:3, 2:5] = True
    assert torch.equal(augment.cutmix(inside, other, own), inside.float())
    assert torch.equal(augment.cutmix(inside, other[:, 0], own[:, 0]), inside[:, 0].float())
    assert own.sum() == 0
    assert other.min() == 1


def test_turning_keeps_the_content_and_unequal_planes():
    torch.manual_seed(0)
    image = torch.randn(16, 1, 3, 8, 8)
    turned = augment.turned(image)
    assert torch.equal(turned.flatten(1).sort(1)[0], image.flatten(1).sort(1)[0])
    kept = sum(torch.equal(a, b) for a, b in zip(turned, image, strict=True))
    assert 1 <= kept <= 9, "a quarter is not turned"
    flat = torch.randn(4, 1, 8, 6)
    assert torch.equal(augment.turned(flat), flat)


def test_views_keep_full_precision_where_the_network_does_not():
    image = torch.randn(2, 1, 24, 24)
    torch.manual_seed(0)
    plain = augment.photometric(image)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment.photometric(image), plain)
