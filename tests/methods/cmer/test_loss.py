"""The terms of the loss, against their published formulas."""

import pytest
import torch
import torch.nn.functional as F

from nnunetv2_conemos.methods.cmer.loss import (
    Seen,
    Tags,
    classification,
    cross_modality,
    distance,
    equivariance,
    exchange,
    unit,
)
from nnunetv2_conemos.methods.cmer.network import max_norm

E = 1e-12


def case(channels=2, samples=4, labels=1, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    first, second = (drawn(samples, channels, labels, 2).requires_grad_() for _ in range(2))
    warped, maps = (drawn(samples, channels, labels, size, size).abs().requires_grad_() for _ in range(2))
    present = torch.rand(samples, labels, generator=generator) < 0.7
    return Seen(first, second, warped, maps), Tags(present, torch.ones_like(present))


def published(p, q, c, c2, y, i):
    """Section by section as written for one label: logits [B,M,2], maps [B,M,1,H,W], tags [B]; losses of channel i."""
    M = p.shape[1]
    yy = y.view(-1, 1, 1, 1).to(c)
    L_C = (F.cross_entropy(p[:, i], y.long()) + F.cross_entropy(q[:, i], y.long())) / 2
    L_ER = (yy * (c[:, i] - c2[:, i]) ** 2).mean()

    def d(a, b, m):
        na, nb = ((z + E).flatten(2).norm(dim=2)[..., None, None] for z in (a, b))
        return (m.view(-1, 1, 1, 1) * (a / na - b / nb) ** 2).mean()

    L_CM, L_KL, T = 0, 0, 10
    for j in range(M):
        if j != i:
            m_p, m_q = (yy.flatten() * (z[:, j].argmax(1) == 1) for z in (p, q))
            L_CM = L_CM + (d(c[:, i], c2[:, j].detach(), m_q) + d(c2[:, i], c[:, j].detach(), m_p)) / 2 / (M - 1)
            for z in (p, q):
                kl = F.kl_div(F.log_softmax(z[:, i] / T, 1), F.softmax(z[:, j].detach() / T, 1), reduction="batchmean")
                L_KL = L_KL + T**2 * kl / 2 / (M - 1)
    return L_C, L_ER, L_CM, L_KL


@pytest.mark.parametrize("channels", [2, 4])
def test_with_one_label_the_terms_are_those_published(channels):
    seen, tags = case(channels, samples=6)
    ours = classification(seen, tags), equivariance(seen, tags), cross_modality(seen, tags), exchange(seen, tags)
    for i in range(channels):
        p, q = seen.first[:, :, 0], seen.second[:, :, 0]
        theirs = published(p, q, seen.warped, seen.maps, tags.present[:, 0], i)
        for term, (mine, their) in enumerate(zip((t[i] for t in ours), theirs, strict=True)):
            assert mine.item() == pytest.approx(their.item(), rel=1e-12), term
            leaves = [seen.first, seen.second, seen.warped, seen.maps]
            grads = [torch.autograd.grad(x, leaves, retain_graph=True, allow_unused=True) for x in (mine, their)]
            for a, b in zip(*grads, strict=True):
                assert (a is None or a.abs().max() == 0) if b is None else torch.allclose(a, b, rtol=1e-10, atol=1e-14)


def test_equivariance_ignores_slices_without_the_label_and_reaches_both_views():
    seen, _ = case()
    tags = Tags(torch.tensor([[True], [False], [False], [True]]), torch.ones(4, 1).bool())
    loss = equivariance(seen, tags).sum()
    for grad in torch.autograd.grad(loss, [seen.warped, seen.maps]):
        assert grad[[1, 2]].abs().max() == 0
        assert (grad[[0, 3]].abs().amax((1, 2, 3, 4)) > 0).all()
    half = Seen(seen.first, seen.second, seen.warped, seen.maps.detach())
    (full,) = torch.autograd.grad(equivariance(seen, tags).sum(), seen.warped)
    assert torch.allclose(torch.autograd.grad(equivariance(half, tags).sum(), seen.warped)[0], full)


def test_the_cross_modality_term_pairs_the_views_crosswise():
    """Channel 0 in one view is compared with channel 1 in the other: alike crosswise is 0, alike in a view is not."""
    a, b = torch.rand(1, 1, 6, 6), torch.rand(1, 1, 6, 6)
    sure = torch.tensor([0.0, 1.0]).expand(1, 2, 1, 2)
    tags = Tags(torch.ones(1, 1).bool(), torch.ones(1, 1).bool())
    crosswise = Seen(sure, sure, torch.stack((a, b), 1), torch.stack((b, a), 1))
    straight = Seen(sure, sure, torch.stack((a, a), 1), torch.stack((b, b), 1))
    assert cross_modality(crosswise, tags, "sum").abs().max() < 1e-10
    assert cross_modality(straight, tags, "sum").min() > 1e-2


@pytest.mark.parametrize("term", [cross_modality, exchange])
@pytest.mark.parametrize("learner", [0, 1, 2])
def test_no_gradient_reaches_a_teacher(term, learner):
    seen, tags = case(3)
    grads = torch.autograd.grad(term(seen, tags)[learner], seen[:2] if term is exchange else seen[2:])
    others = [channel for channel in range(3) if channel != learner]
    for grad in grads:
        assert grad[:, others].abs().max() == 0
        assert grad[:, learner].abs().max() > 0


def test_the_cross_modality_term_needs_the_label_and_a_teacher_that_sees_it():
    seen, _ = case(samples=2)
    yes, no = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    here, absent = (Tags(torch.full((2, 1), v), torch.ones(2, 1).bool()) for v in (True, False))

    def of(first, second, tags=here):
        logits = [torch.stack(pair).view(1, 2, 1, 2).expand(2, 2, 1, 2) for pair in (first, second)]
        return cross_modality(Seen(*logits, seen.warped, seen.maps), tags).tolist()

    both = of((yes, yes), (yes, yes))
    assert min(both) > 0
    assert of((yes, yes), (yes, yes), absent) == [0, 0]
    assert of((no, no), (no, no)) == [0, 0]
    supervised, teacher = of((yes, no), (yes, no))
    assert supervised == 0, "channel 1 says absent in both views, so channel 0 learns nothing of it"
    assert teacher == pytest.approx(both[1])
    only_second = of((no, no), (yes, yes))
    assert 0 < only_second[0] < both[0], "the second view teaches the first"


def test_the_distance_is_a_cosine_whatever_the_scale():
    a, b = torch.rand(2, 1, 5, 7, dtype=torch.float64), torch.rand(2, 1, 5, 7, dtype=torch.float64)
    tags = Tags(torch.ones(2, 1).bool(), torch.ones(2, 1).bool())
    counted = torch.ones(2, 1).bool()
    total = distance(a, b, counted, tags, "sum")
    cosine = F.cosine_similarity(a.flatten(1), b.flatten(1))
    assert total.item() == pytest.approx((2 - 2 * cosine).mean().item())
    assert distance(a, b, counted, tags, "mean").item() == pytest.approx(total.item() / 35)
    assert distance(5 * a, 0.1 * b, counted, tags, "sum").item() == pytest.approx(total.item())


def test_empty_maps_are_finite_in_value_and_gradient():
    seen, tags = case()
    leaf = (-torch.rand(4, 2, 1, 6, 6)).requires_grad_()
    sure = torch.tensor([0.0, 1.0]).expand(4, 2, 1, 2)
    loss = cross_modality(Seen(sure, sure, max_norm(leaf), seen.maps.float()), tags, "sum").sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(leaf.grad).all()
    assert torch.equal(unit(torch.zeros(1, 1, 4, 4)), torch.zeros(1, 1, 4, 4))


def test_exchange_is_directed_from_teacher_to_learner():
    seen, tags = case(samples=1)
    t = [F.softmax(seen.first[0, c, 0] / 10, 0) for c in (0, 1)]
    u = [F.softmax(seen.second[0, c, 0] / 10, 0) for c in (0, 1)]
    expected = 100 * sum((z[1] * (z[1] / z[0]).log()).sum() for z in (t, u)) / 2
    assert exchange(seen, tags)[0].item() == pytest.approx(expected.item(), rel=1e-10)


def test_unknown_tags_contribute_nothing():
    seen, tags = case(3, samples=5, labels=2)
    known = torch.rand(5, 2, generator=torch.Generator().manual_seed(1)) < 0.6
    for term in (classification, equivariance, cross_modality, exchange):
        values = []
        for poisoned in (tags.present, tags.present ^ ~known):
            loss = term(seen, Tags(poisoned, known)).sum()
            grads = torch.autograd.grad(loss, list(seen), allow_unused=True, retain_graph=True)
            values.append(loss.item())
            for grad in grads:
                assert grad is None or grad.movedim(1, 2)[~known].abs().max() == 0
        assert values[0] == values[1]
        nothing = term(seen, Tags(tags.present, torch.zeros_like(known)))
        assert nothing.abs().max() == 0


def test_several_labels_are_the_mean_of_each_alone():
    seen, tags = case(2, labels=3)
    for term in (classification, equivariance, cross_modality, exchange):
        alone = [
            term(Seen(*(field[:, :, k : k + 1] for field in seen)), Tags(*(t[:, k : k + 1] for t in tags)))
            for k in range(3)
        ]
        assert torch.allclose(term(seen, tags), torch.stack(alone).mean(0))
