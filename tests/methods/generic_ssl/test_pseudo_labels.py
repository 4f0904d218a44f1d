"""Maps of annotated cases, counts, and votes for pseudo-labels."""

import pytest
import torch
import torch.nn.functional as F

from nnunetv2_conemos.methods.generic_ssl import pseudo_labels as pseudo_maps
from nnunetv2_conemos.methods.generic_ssl.network import against_background
from nnunetv2_conemos.records import Truth


def truth(target, known=None, valid=None):
    target = torch.as_tensor(target)
    every = torch.arange(1, 4).expand(len(target), -1)
    return Truth(target, every, torch.ones(len(target), 3, dtype=torch.bool) if known is None else known, valid)


def test_maps_are_signed_and_zero_where_nothing_is_known():
    target = torch.tensor([[[[0, 1, 2]]]] * 2)
    known = torch.tensor([[True] * 3, [True, False, True]])
    maps = pseudo_maps.clean_maps(truth(target, known))
    assert maps[0, :, 0].T.tolist() == [[1, -1, -1, -1], [-1, 1, -1, -1], [-1, -1, 1, -1]]
    assert maps[1, :, 0].T.tolist() == [[0, -1, 0, -1], [-1, 1, 0, -1], [0, -1, 0, -1]]
    valid = torch.tensor([[[[True, False, True]]]] * 2)
    assert pseudo_maps.clean_maps(truth(target, known, valid))[:, :, 0, 1].abs().max() == 0


def test_counts_are_those_of_annotated_classes():
    target = torch.tensor([[[[0, 1, 2, 3]]], [[[1, 1, 0, 0]]]])
    found = torch.tensor([[0, 1, 1, 3], [1, 0, 2, 0]])
    logits = 20.0 * F.one_hot(found, 4).movedim(-1, 1).float()[:, :, None]
    whole = pseudo_maps.class_counts(against_background(logits), truth(target))
    assert whole.tolist() == [[2, 2, 0, 1], [1, 1, 1, 0], [1, 1, 1, 0]]
    partly = pseudo_maps.class_counts(
        against_background(logits), truth(target, torch.tensor([[True] * 3, [True, False, True]]))
    )
    assert partly.tolist() == [[3, 2, 0, 1], [1, 1, 0, 0], [0, 1, 1, 0]], "label 2 of the second is background"
    valid = torch.tensor([[[[True, True, False, True]]]] * 2)
    assert pseudo_maps.class_counts(against_background(logits), truth(target, None, valid)).sum(1).tolist() == [5, 1, 1]


def test_smoothing_is_the_published_filter():
    point = torch.zeros(1, 2, 5, 5, 5)
    point[0, 1, 2, 2, 2] = 1
    found = pseudo_maps.smoothed(point)
    assert found[0, 0].abs().max() == 0, "each channel by itself"
    assert found.sum().item() == pytest.approx(1)
    for offset, weight in (((0, 0, 0), 0.0923), ((1, 0, 0), 0.0560), ((1, 1, 0), 0.0339), ((1, 1, 1), 0.0206)):
        assert found[0, 1, 2 + offset[0], 2 + offset[1], 2 + offset[2]].item() == pytest.approx(weight, abs=1e-4)
    assert pseudo_maps.smoothed(torch.ones(1, 1, 5, 5))[0, 0, 0, 0] < 0.8, "zero outside"


def test_a_sure_classifier_wins_and_an_unsure_one_leaves_it_to_the_diffusion():
    torch.manual_seed(0)
    supervised, every = torch.ones(3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    sure, flat = torch.zeros(1, 4, 30, 30), torch.zeros(1, 4, 30, 30)
    sure[:, 2] = 20
    maps = -torch.ones(1, 4, 30, 30)
    maps[:, 1] = 1
    assert (pseudo_maps.pseudo_labels(maps, sure, supervised, every) == 2).all()
    share = (pseudo_maps.pseudo_labels(maps, flat, supervised, every) == 1).float().mean()
    assert share > 0.9, "Gumbel noise, smoothed, rarely beats a whole map"
    assert not (pseudo_maps.pseudo_labels(maps, flat, torch.tensor([False, True, True]), every) == 1).any()
    torch.manual_seed(1)
    first = pseudo_maps.pseudo_labels(maps, flat, supervised, every)
    torch.manual_seed(1)
    assert torch.equal(first, pseudo_maps.pseudo_labels(maps, flat, supervised, every))


def test_votes_for_what_a_case_cannot_show_do_not_count():
    """Nor do they count for background, as those for a label that nobody taught do."""
    logits = torch.tensor([0.0, 1.0, 3.0, 2.0]).view(1, 4, 1, 1).expand(3, 4, 20, 20)
    maps, supervised = -torch.ones(3, 4, 20, 20), torch.tensor([True, True, True])
    maps[:, 3], maps[:, 2] = 1, 1
    possible = torch.tensor([[True, True, True], [True, False, True], [True, False, False]])
    found = pseudo_maps.pseudo_labels(maps, logits, supervised, possible)
    assert set(found[0].unique().tolist()) >= {2}
    for sample, expected in ((1, 3), (2, 1)):
        assert not torch.isin(found[sample], torch.arange(1, 4)[~possible[sample]]).any()
        assert found[sample].mode().values.mode().values == expected
    never_annotated = pseudo_maps.pseudo_labels(
        maps, logits, torch.tensor([True, False, True]), torch.ones(3, 3).bool()
    )
    assert (never_annotated == 0).float().mean() > 0.8


@pytest.mark.parametrize(("classes", "vote"), [(2, 0.881), (4, 0.711), (5, 0.649), (14, 0.362)])
def test_the_bound_of_a_vote(classes, vote):
    assert pseudo_maps.largest_vote(classes) == pytest.approx(vote, abs=1e-3)


def test_gumbel_noise_decides_where_nothing_else_does():
    torch.manual_seed(0)
    flat = torch.zeros(1, 4, 60, 60)
    found = pseudo_maps.pseudo_labels(
        flat, flat, torch.ones(3, dtype=torch.bool), torch.ones(len(flat), 3, dtype=torch.bool)
    )
    shares = torch.bincount(found.flatten(), minlength=4) / found.numel()
    assert shares.min() > 0.1


def test_without_a_vote_of_the_diffusion_the_classifier_decides():
    logits = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0))
    supervised, every = torch.ones(3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(pseudo_maps.pseudo_labels(None, logits, supervised, every), logits.argmax(1))
