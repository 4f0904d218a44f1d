"""Pseudo-labels of unlabelled images and the consistency of their views."""

import math
from functools import partial

import pytest
import torch
from architectures import LABELS, moved_network
from torch import nn

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.methods import UniMOSTrainer
from nnunetv2_conemos.methods.unimos import pseudo_labels
from nnunetv2_conemos.methods.unimos.pseudo_labels import Consistency, PseudoLabels, Unlabelled
from nnunetv2_conemos.methods.unimos.scale_fusion import Perturb


class Fixed(nn.Module):
    """Logits by the mean of an image: 0 -> label 1 surely, 1 -> label 2 surely; perturbed: its negative."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen = []

    def logits(self, image):
        kind = (image.mean((1, 2, 3)) > 0.5).long()
        values = torch.full((len(image), 3, *image.shape[2:]), -20.0)
        for sample, which in zip(values, kind, strict=True):
            sample[which] = 20.0
        return self.scale * values

    def forward(self, query):
        self.seen.append(query)
        if isinstance(query, Perturb):
            return self.logits(query.image), -self.logits(query.image)
        return self.logits(query.image)


def test_cutmix_moves_pseudo_labels_with_the_image_for_each_view(monkeypatch):
    weak, mixed = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    monkeypatch.setattr(pseudo_labels, "photometric", lambda x: x + 0.01)
    network, queried = Fixed(), torch.ones(2, 3, dtype=torch.bool)
    inside = torch.ones(4, 8, 8, dtype=torch.bool)
    inside[:2, :, :2] = False  # padding of the weak views
    given = Unlabelled(torch.cat((weak, mixed)), inside, torch.ones(4, 3, dtype=torch.bool))
    made = Consistency(network, given, queried, threshold=0.9)
    assert (made.of_mixed.label == 2).all()
    assert made.of_mixed.confidence.min() > 0.999, "a sure prediction is sure after merging too"
    seen = []
    monkeypatch.setattr(made, "_consistency", lambda logits, pseudo: seen.append(pseudo) or logits.sum() * 0)
    made.perturbed()
    assert (made.of_weak.label == 1).all()
    before = made.of_weak.label.clone(), made.of_mixed.label.clone()
    made.strong()
    made.strong()
    _, first, second = seen
    for pseudo, query in ((first, network.seen[-2]), (second, network.seen[-1])):
        box = query.image[:, 0] > 0.5  # of the other image
        assert box.any()
        assert torch.equal(query.image[:, 0], torch.where(box, 1.01, 0.01)), "photometric views of both"
        assert torch.equal(pseudo.label, torch.where(box, 2, 1))
        padded = torch.zeros(2, 8, 8, dtype=torch.bool).index_fill(2, torch.arange(2), True)
        confidence = torch.where(box, made.of_mixed.confidence, made.of_weak.confidence)
        assert torch.equal(pseudo.confidence, confidence)
        assert (pseudo.confidence[padded & ~box] == 0).all(), "padding has no pseudo-label"
        assert (pseudo.confidence[padded & box] > 0.99).all(), "what is mixed into it has"
    assert not torch.equal(first.label, second.label), "a box for each view"
    assert torch.equal(made.of_weak.label, before[0])
    assert torch.equal(made.of_mixed.label, before[1])
    assert made.confident_share == 1, "of what is not padding"


def test_pseudo_labels_of_a_sample_are_among_its_queried_labels(monkeypatch):
    """Those that come with a box of another image, too."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 8, 8)
    monkeypatch.setattr(pseudo_labels, "photometric", lambda x: x)
    queried = torch.tensor([[True, False, False], [False, True, False]])
    given = Unlabelled(torch.zeros(4, 1, 8, 8), torch.ones(4, 8, 8).bool(), torch.ones(4, 3).bool())
    made = Consistency(
        lambda query: (logits, logits) if isinstance(query, Perturb) else logits.flip(0),
        given,
        queried,
        threshold=0.5,
    )
    seen = []
    monkeypatch.setattr(made, "_consistency", lambda logits, pseudo: seen.append(pseudo) or logits.sum() * 0)
    made.perturbed()
    made.strong()
    for pseudo in (made.of_mixed, *seen):
        assert set(pseudo.label[0].unique().tolist()) == {0, 1}
        assert set(pseudo.label[1].unique().tolist()) == {0, 2}


def test_pseudo_labels_are_among_the_queried_labels():
    logits = torch.randn(2, 3, 8, 8)
    queried = torch.tensor([[False, True, False], [True, True, True]])
    every = torch.ones(2, 3, dtype=torch.bool)
    found = pseudo_labels.pseudo_labels(logits, queried, every)
    assert set(found.label[0].unique().tolist()) <= {0, 2}
    p = torch.softmax(torch.cat((torch.zeros(2, 1, 8, 8), logits), 1), 1)
    expected = torch.stack((p[0, 0] + p[0, 1] + p[0, 3], p[0, 2])).max(0)[0]
    assert torch.allclose(found.confidence[0], expected, atol=1e-6)
    assert (found.confidence[0] >= 0.5).all(), "two classes"
    assert not pseudo_labels.pseudo_labels(logits.requires_grad_(), queried, every).confidence.requires_grad


def test_what_a_case_cannot_show_has_no_part_in_its_pseudo_labels():
    logits, queried = torch.randn(3, 3, 8, 8), torch.tensor([[True, True, False]] * 3)
    possible = torch.tensor([[True, False, True], [True, True, False], [False, False, True]])
    found = pseudo_labels.pseudo_labels(logits, queried, possible)
    p = torch.cat((torch.ones(3, 1, 8, 8), logits.exp()), 1)
    for sample, background, labels in ((0, [0, 3], [1]), (1, [0], [1, 2]), (2, [0, 3], [])):
        others = [p[sample, k] for k in labels]
        expected = torch.stack((p[sample, background].sum(0), *others)) / p[sample, background + labels].sum(0)
        confidence, which = expected.max(0)
        assert torch.allclose(found.confidence[sample], confidence, atol=1e-6)
        assert torch.equal(found.label[sample], torch.tensor([0, *labels])[which])


def test_the_mean_is_over_all_voxels_and_zero_where_none_is_confident():
    torch.manual_seed(0)
    logits, queried = torch.randn(2, 3, 8, 8, requires_grad=True), torch.ones(2, 3, dtype=torch.bool)
    label = torch.ones(2, 8, 8, dtype=torch.long)
    confident = torch.ones(2, 8, 8, dtype=torch.bool)
    same = torch.zeros(2, 3, 8, 8)
    whole = pseudo_labels.consistency(same, queried, label, confident)
    half = confident.clone()
    half[:, :4] = False
    assert pseudo_labels.consistency(same, queried, label, half).item() == pytest.approx(whole.item() / 2)
    assert whole.item() == pytest.approx(math.log(4)), "no class weighs more than another"
    published = pseudo_labels.consistency(same, queried, label, confident, weighted=True)
    assert published.item() == pytest.approx(1.2 * math.log(4)), "weighted, and not divided by weights"
    background = pseudo_labels.consistency(same, queried, 0 * label, confident, weighted=True)
    assert background.item() == pytest.approx(0.2 * math.log(4))
    none = pseudo_labels.consistency(logits, queried, label, ~confident)
    none.backward()
    assert none.item() == 0
    assert logits.grad.abs().max() == 0


def test_thresholds_rise_with_the_training():
    assert [pseudo_labels.threshold(x) for x in (0.0, 0.279, 0.281, 0.559, 0.561, 1.0)] == [
        0.7,
        0.7,
        0.8,
        0.8,
        0.9,
        0.9,
    ]


def test_targets_are_all_labels_or_those_that_the_dataset_annotates():
    sources = {
        "A": {"cases": ["a*"], "annotated": ["a"], "dataset": "one"},
        "B": {"cases": ["b*"], "annotated": ["b"], "dataset": "two"},
        "U": {"cases": ["u*"], "annotated": [], "dataset": "one"},
        "V": {"cases": ["v*"], "annotated": []},
    }
    table = SourceTable.from_dataset_json({"labels": LABELS, "sources": sources}, ["a0", "b0", "u0", "v0"])
    everything = pseudo_labels.targets_of(table, table.cases, "all")
    assert everything.keys() == set(table.cases)
    assert everything["u0"].tolist() == [True, True, False], "nobody annotates c"
    of_dataset = pseudo_labels.targets_of(table, table.cases, "dataset")
    assert of_dataset["u0"].tolist() == [True, False, False]
    assert of_dataset["v0"].tolist() == [True, True, False]
    assert pseudo_labels.targets_of(table, ["a0", "u0"], "all")["u0"].tolist() == [True, False, False], (
        "b is not trained"
    )


network = partial(moved_network, UniMOSTrainer)


def others(labels):
    """Pseudo-labels of the next image of the batch."""
    return lambda *given: PseudoLabels(*(part.roll(1, 0) for part in labels(*given)))
