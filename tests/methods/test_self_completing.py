"""SelfCompletingTrainer: what the teacher may add to annotations, how it counts, and that it survives a restart."""

import pytest
import torch
from worlds import make_trainer, world

from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.methods import SelfCompletingTrainer
from nnunetv2_conemos.methods.self_completing import (
    Completed,
    CompletedDiceBCE,
    Relations,
    SelfCompletingOptions,
    completed,
)
from nnunetv2_conemos.records import Truth

LABELS = {"background": 0, "a": 1, "b": 2, "c": 3}
REGIONS = {"background": 0, "whole": [1, 2, 3], "body": [2, 3], "core": 3}
EVERY = torch.tensor([[1, 2, 3]])
SURE, UNSURE = 5.0, 0.5  # logits


def label_truth(values, known, valid=None):
    """One sample of one row of voxels."""
    target = torch.tensor(values).view(1, 1, 1, -1)
    return Truth(target, EVERY, torch.tensor([known]), None if valid is None else torch.tensor(valid).view(1, 1, 1, -1))


def answers(rows):
    """Logits of a teacher, a row for each label."""
    return torch.tensor(rows).view(1, len(rows), 1, -1)


def rows(mask):
    return mask[0, :, 0].int().tolist()


def test_confident_voxels_of_labels_that_are_not_annotated_are_added():
    truth = label_truth([0, 0, 0, 1], [True, False, False])
    teacher = answers([[9.0, 9, 9, 9], [SURE, -SURE, UNSURE, -SURE], [-SURE, -UNSURE, -SURE, -SURE]])
    found = completed(truth, teacher, Relations.of_values([(1,), (2,), (3,)]), 0.8, 0.5)
    assert found.truth is truth
    assert rows(found.weight * 2)[0] == [0, 0, 0, 0], "annotated"
    assert rows(found.weight * 2)[1:] == [[0, 1, 0, 1], [1, 0, 1, 1]]
    assert found.weight.max() == 0.5
    less = answers([[-9.0] * 4, [SURE, -SURE, UNSURE, SURE], [-SURE, -UNSURE, -SURE, -SURE]])
    found = completed(truth, less, Relations.of_values([(1,), (2,), (3,)]), 0.8, 1.0)
    assert rows(found.present)[1] == [1, 0, 0, 0], "not where an annotated label is"
    assert rows(found.weight)[1] == [1, 1, 0, 0]


def test_of_two_labels_that_never_overlap_the_likelier_is_present():
    truth = label_truth([0, 0], [True, False, False])
    found = completed(
        truth, answers([[-9.0, -9], [4.0, 6], [5.0, 5]]), Relations.of_values([(1,), (2,), (3,)]), 0.8, 1.0
    )
    assert rows(found.present)[1:] == [[0, 1], [1, 0]]
    assert rows(found.weight)[1:] == [[0, 1], [1, 0]], "what the other is, is not said"


def region_truth(values, known):
    """As nnU-Net gives regions: a channel for each."""
    target = torch.tensor(values)
    channels = torch.stack([torch.isin(target, torch.tensor(of)) for of in ([1, 2, 3], [2, 3], [3])])
    return Truth(channels.view(1, 3, 1, -1), EVERY, torch.tensor([known]), None)


def test_nested_regions_stay_nested():
    """Within what is annotated: no body outside the whole, and the whole wherever a core is."""
    relations = Relations.of_values([(1, 2, 3), (2, 3), (3,)])
    outline = region_truth([0, 1, 1], [True, False, False])
    found = completed(outline, answers([[9.0] * 3, [SURE, SURE, -SURE], [SURE, SURE, -SURE]]), relations, 0.8, 1.0)
    assert rows(found.present)[1:] == [[0, 1, 0], [0, 1, 0]], "both may be there: they are nested"
    assert rows(found.weight)[1:] == [[0, 1, 1], [0, 1, 1]]
    core = region_truth([3, 0, 0], [False, False, True])
    found = completed(core, answers([[-SURE, -SURE, SURE], [-SURE, SURE, SURE], [9.0] * 3]), relations, 0.8, 1.0)
    assert rows(found.weight)[:2] == [[0, 1, 1], [0, 1, 1]], "the core is within both"
    assert rows(found.present)[:2] == [[0, 0, 1], [0, 1, 1]]


def test_ignored_voxels_and_padding_are_not_answered():
    truth = label_truth([0, 0], [True, False, False], valid=[True, False])
    truth = truth._replace(labels=torch.tensor([[1, 2, 0]]))
    found = completed(truth, answers([[SURE] * 2] * 3), Relations.of_values([(1,), (2,), (3,)]), 0.8, 1.0)
    assert rows(found.weight) == [[0, 0], [1, 0], [0, 0]]


def test_other_resolutions_take_the_nearest_answer():
    truth = label_truth([0, 0], [True, False, False])
    teacher = answers([[-9.0] * 4, [SURE, SURE, -SURE, -SURE], [-SURE] * 4]).expand(1, 3, 2, 4)
    found = completed(truth, teacher, Relations.of_values([(1,), (2,), (3,)]), 0.8, 1.0)
    assert rows(found.present)[1] == [1, 0]


def random_truth(known):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (2, 1, 8, 9), generator=generator)
    every = EVERY.expand(2, -1)
    logits = torch.randn(2, 3, 8, 9, generator=generator, requires_grad=True)
    return logits, Truth(target, every, torch.tensor(known), None)


KNOWN = [[True, False, False], [True, True, False]]


def test_without_answers_the_loss_is_the_masked_one():
    logits, truth = random_truth(KNOWN)
    nothing = Completed(truth, torch.zeros(2, 3, 8, 9, dtype=torch.bool), torch.zeros(2, 3, 8, 9))
    values = [CompletedDiceBCE()(logits, nothing), CompletedDiceBCE()(logits, truth), MaskedDiceBCE()(logits, truth)]
    assert values[0].item() == pytest.approx(values[2].item(), abs=1e-6)
    assert values[1].item() == values[2].item()
    (gradient,) = torch.autograd.grad(values[0], logits)
    assert (gradient[:, 2] == 0).all()


def test_right_answers_everywhere_make_the_loss_that_of_complete_annotations():
    logits, truth = random_truth(KNOWN)
    complete = truth._replace(known=torch.ones_like(truth.known))
    unknown = (~truth.known)[:, :, None, None].expand(2, 3, 8, 9)
    answered = Completed(truth, truth.onehot() & unknown, unknown.float())
    expected = MaskedDiceBCE()(logits, complete).item()
    assert CompletedDiceBCE()(logits, answered).item() == pytest.approx(expected, abs=1e-6)


def test_answers_count_with_their_weight():
    logits, truth = random_truth(KNOWN)
    unknown = (~truth.known)[:, :, None, None].expand(2, 3, 8, 9)
    half = Completed(truth, truth.onehot() & unknown, 0.5 * unknown.float())
    target, counted = truth.onehot().float(), (~unknown).float() + 0.5 * unknown
    per_voxel = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = torch.sigmoid(logits)
    overlap, mass = ((of * counted).sum((0, 2, 3)) for of in (p * target, p + target))
    expected = (per_voxel * counted).sum() / counted.sum() - (2 * overlap / mass).mean()
    assert CompletedDiceBCE()(logits, half).item() == pytest.approx(expected.item(), abs=1e-4)


def test_the_weight_rises_after_the_start():
    options = SelfCompletingOptions(weight=2.0, start=0.3, ramp=0.2)
    found = [options.weight_at(x) for x in (0.0, 0.3, 0.4, 0.5, 1.0)]
    assert found == pytest.approx([0, 0, 1, 2, 2])


def ready(base, labels=LABELS, **options):
    world(base, labels, 2, "plain")
    trainer = make_trainer(base, SelfCompletingTrainer)
    trainer.configuration_manager.configuration["conemos"] |= options
    trainer.initialize()
    trainer.network.train()
    return trainer, trainer.get_dataloaders()[0]


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_the_teacher_answers_after_the_start_and_in_training_alone(nnunet_folders, labels):
    trainer, loader = ready(nnunet_folders, labels, threshold=0.51)
    batch = next(loader)
    assert isinstance(trainer.to_query_and_truth(batch)[1][0], Truth), "not yet"
    trainer.train_step(batch)
    trainer.current_epoch = trainer.num_epochs // 2
    _, scales = trainer.to_query_and_truth(batch)
    assert all(isinstance(scale, Completed) for scale in scales)
    known = scales[0].truth.known
    assert known.shape == (2, 3), "every label is queried"
    assert (scales[0].weight[known] == 0).all()
    if not known.all():
        assert scales[0].weight[~known].max() == 1
    assert not scales[0].weight.requires_grad
    assert torch.isfinite(torch.tensor(float(trainer.train_step(batch)["loss"])))
    trainer.network.eval()
    assert isinstance(trainer.to_query_and_truth(batch)[1][0], Truth)


def test_the_answers_are_those_of_the_moving_average(nnunet_folders):
    trainer, loader = ready(nnunet_folders)
    batch = next(loader)
    trainer.train_step(batch)
    trainer.current_epoch = trainer.num_epochs - 1
    for parameter in trainer.average.model.parameters():
        parameter.data.zero_()
    trainer.average.model.module.decoder.seg_layers[-1].bias.data += 9.0
    _, (finest, *_) = trainer.to_query_and_truth(batch)
    open_ = (~finest.truth.known)[:, :, None, None].expand_as(finest.present)
    assert (finest.present & open_).any() == open_.any()
    trainer.average.model.module.decoder.seg_layers[-1].bias.data -= 18.0
    _, (finest, *_) = trainer.to_query_and_truth(batch)
    assert not finest.present.any()
    assert torch.equal(finest.weight > 0, open_)


def test_a_weight_of_zero_is_the_masked_network(nnunet_folders):
    trainer, loader = ready(nnunet_folders, weight=0.0)
    trainer.current_epoch = trainer.num_epochs - 1
    assert isinstance(trainer.to_query_and_truth(next(loader))[1][0], Truth)


def test_a_restart_has_the_same_teacher(nnunet_folders, tmp_path):
    trainer, loader = ready(nnunet_folders)
    for _ in range(3):
        trainer.train_step(next(loader))
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    fresh, _ = ready(nnunet_folders)
    fresh.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    for ours, theirs in ((fresh.network, trainer.network), (fresh.average.model, trainer.average.model)):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    differ = zip(trainer.network.parameters(), trainer.average.model.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in differ), "the teacher lags behind"
