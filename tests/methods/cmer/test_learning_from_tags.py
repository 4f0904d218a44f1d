"""Image tags are learnt: a phantom of two channels, three seeds, what each term adds, and shuffled tags.

The core of a lesion is seen in channel 0, the whole of it in channel 1; each channel has a bright bar of its own in
every slice. The label is the whole lesion. The cross-modality term is summed over the pixels: as a mean it has hardly
any weight.
"""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from worlds import dice, make_trainer, train, write_world

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.methods import CMERTrainer, ConditionalFiLMTrainer
from nnunetv2_conemos.methods.cmer.network import SOFTNESS, max_norm
from nnunetv2_conemos.methods.cmer.pseudo_labels import Annotation, pseudo_map
from nnunetv2_conemos.methods.cmer.thresholds import best_threshold, dice_by_threshold, fused_volume

LABELS = {"background": 0, "lesion": 1}
TAGGED = {"T": {"cases": ["t*"], "annotated": [], "tagged": ["lesion"]}}
OPTIONS = {"width_divisor": 8, "learning_rate": 1e-3, "reduction": "sum"}
NO_EXCHANGE = {"exchange_weight": 0, "cross_modality_weight": 0}
ARMS = {"CE": {**NO_EXCHANGE, "equivariance_weight": 0}, "ER": NO_EXCHANGE, "CMER": {}}
SIZE, STEPS = 48, 200
BOTH = (1, -1)  # bright lesions and dark ones


def lesion(rng, present, sign=1):
    """Two channels [2,H,W] and the map of the whole lesion [H,W], which is bright, or with `sign` -1 dark."""
    y, x = np.mgrid[:SIZE, :SIZE]
    image, target = rng.normal(0, 0.25, (2, SIZE, SIZE)), np.zeros((SIZE, SIZE), np.int8)
    radius = rng.uniform(7, 9)
    centre = rng.uniform(radius + 2, SIZE - radius - 2, 2)
    if present:
        distance = np.hypot(y - centre[0], x - centre[1])
        image[1] += sign * (distance <= radius)
        image[0] += sign * 1.5 * (distance <= radius / 2)
        target[distance <= radius] = 1
    for channel, (high, wide) in enumerate(((8, 3), (3, 8))):
        bar = centre
        while np.hypot(*(bar - centre)) < radius + 9:
            bar = rng.uniform(10, SIZE - 10, 2)
        image[channel] += 1.3 * ((abs(y - bar[0]) <= high) & (abs(x - bar[1]) <= wide))
    return image.astype(np.float32), target


def volume(rng, depth=16, signs=(1,)):
    """Half of its slices, at random, show a lesion; `signs` take turns."""
    images, targets = zip(*(lesion(rng, rng.random() < 0.5, signs[i % len(signs)]) for i in range(depth)), strict=True)
    return np.stack(images, 1), np.stack(targets)


def tags_of(cases, rng=None):
    """The slices that show the lesion; with `rng`, others, as many."""
    tags = {}
    for case, (_, target) in cases.items():
        there = target.any((1, 2))
        tags[case] = {"lesion": np.flatnonzero(rng.permutation(there) if rng else there).tolist()}
    return {"cases": tags}


def learnt(base, seed, options, shuffled=False, cases=None, steps=STEPS):
    """A network that saw the tags of ten volumes and no voxel label."""
    rng = np.random.default_rng(seed)
    cases = cases or {f"t{i}": volume(rng) for i in range(10)}
    blank = {case: (image, np.zeros_like(target)) for case, (image, target) in cases.items()}
    tags = tags_of(cases, rng if shuffled else None)
    write_world(base, blank, LABELS, TAGGED, batch_size=8, tags=tags, options=OPTIONS | options)
    torch.manual_seed(seed)
    return train(make_trainer(base, CMERTrainer), steps, seed)


def activation(network, image):
    return fused_volume(network, image, (SIZE, SIZE), 16, torch.device("cpu"))[0]


def positive_slice_dice(activate):
    """Of activations [D,H,W] of images [M,D,H,W]: the mean over new slices with a lesion, and the threshold.

    It is the one that is best for two other volumes.
    """
    tune, test = (np.random.default_rng(seed) for seed in (100, 200))
    everywhere = np.ones((16, SIZE, SIZE), dtype=bool)
    curves = [dice_by_threshold(activate(x), t == 1, everywhere) for x, t in (volume(tune) for _ in range(2))]
    best = best_threshold(np.stack(curves))
    threshold = best[0] if best else 0.5
    scores = []
    for image, target in (volume(test) for _ in range(4)):
        found = activate(image) > threshold
        scores += [dice(f, t == 1) for f, t in zip(found, target, strict=True) if t.any()]
    return float(np.mean(scores)), threshold


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_each_term_adds_to_the_dice_of_slices_with_a_lesion(nnunet_folders, seed):
    """An empty prediction has 0 there; brightness, without learning, 0.64."""
    found = {"brightness": positive_slice_dice(brightness)}
    for arm, options in ARMS.items():
        network = learnt(nnunet_folders, seed, options)
        found[arm] = positive_slice_dice(partial(activation, network))
        print(f"seed {seed}, {arm}: Dice {found[arm][0]:.3f} at threshold {found[arm][1]:.2f}")
    assert found["CMER"][0] > max(found[arm][0] for arm in ("ER", "CE", "brightness")) + 0.05, found


@pytest.mark.slow
def test_shuffled_tags_teach_nothing(nnunet_folders):
    """New slices are classified by chance, and maps find no more than the brightness of the image does."""
    network = learnt(nnunet_folders, 0, {}, shuffled=True)
    found, threshold = positive_slice_dice(partial(activation, network))
    bright, _ = positive_slice_dice(brightness)
    right = tag_accuracy(network)
    print(f"shuffled tags: {right:.2f} of the tags right, Dice {found:.3f} at {threshold:.2f}; brightness {bright:.3f}")
    assert abs(right - 0.5) < 0.2
    assert found < max(bright, 0.3) + 0.1


def brightness(image):
    """Each slice of the mean of the channels, smoothed, in [0, 1]: what a threshold finds without learning."""
    smooth = gaussian_filter(image.mean(0), (0, 2, 2))
    return max_norm(torch.from_numpy(smooth)).numpy()


def tag_accuracy(network):
    """Share of new slices, half of them with a lesion, that the channels classify as they are."""
    rng = np.random.default_rng(400)
    present = np.arange(40) % 2 == 0
    images = torch.from_numpy(np.stack([lesion(rng, there)[0] for there in present]))
    with torch.no_grad():
        found = network.activation(images).found[:, :, 0].numpy()
    return float((found == present[:, None]).mean())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_pseudo_masks_teach_what_the_few_masks_do_not_show(nnunet_folders, seed):
    """Stage 2: two annotated slices, one with a bright lesion; lesions of the ten tagged volumes are bright or dark."""
    rng = np.random.default_rng(50 + seed)
    images, targets = zip(lesion(rng, True), lesion(rng, False), strict=True)
    few = {"m0": (np.stack(images, 1), np.stack(targets))}
    tagged = {f"t{i}": volume(rng, signs=BOTH) for i in range(10)}
    network = learnt(nnunet_folders, seed, {}, cases=tagged, steps=2 * STEPS)
    pseudo = pseudo_masks(network, tagged, threshold_of(network, *few["m0"]))
    true, made = (np.concatenate([maps for _, maps in cases.values()]) == 1 for cases in (tagged, pseudo))
    found, wrong = (true & made).sum() / true.sum(), (made & ~true).sum() / true.sum()
    print(f"seed {seed}: {found:.2f} of the lesions annotated, {wrong:.2f} wrongly")
    assert wrong < 0.1 * found
    scores = {name: dice_of_stage_2(nnunet_folders, seed, few, more) for name, more in (("few", {}), ("both", pseudo))}
    print(f"seed {seed}, bright and dark lesions: {scores}")
    assert np.mean(scores["both"]) > np.mean(scores["few"]) + 0.1
    assert scores["both"][1] > 0.5


def threshold_of(network, image, target):
    everywhere = np.ones_like(target, dtype=bool)
    curve = dice_by_threshold(activation(network, image), target == 1, everywhere)
    best = best_threshold(curve[None])
    assert best is not None
    return best[0]


def pseudo_masks(network, tagged, threshold):
    """What `conemos cams` writes for the tagged cases, with its default bounds."""
    dataset_json = {"labels": LABELS, "sources": TAGGED, "tags": tags_of(tagged)}
    table = SourceTable.from_dataset_json(dataset_json, tagged)
    how: dict = dict.fromkeys(("model", "inference", "raw")) | {"jobs": {}}
    thresholds = np.array([threshold])
    annotation = Annotation(
        **how, table=table, dataset_json=dataset_json, thresholds=thresholds, margin=0.1, background=0.2
    )
    made = {}
    for case, (image, target) in tagged.items():
        logit = (activation(network, image) - threshold) / SOFTNESS
        probabilities = np.stack([1 / (1 + np.exp(logit)), 1 / (1 + np.exp(-logit))])
        found = pseudo_map(annotation, case, probabilities, np.zeros_like(target, np.intp))
        made[case] = image, found.astype(np.int8)
    return made


def dice_of_stage_2(base, seed, few, pseudo):
    """Mean Dice over new slices with a bright, and with a dark lesion, of a network taught by these cases."""
    sources = {"M": {"cases": ["m*"], "annotated": ["lesion"]}}
    if pseudo:
        sources["T (pseudo)"] = {"cases": ["t*"], "annotated": ["lesion"]}
    write_world(base, few | pseudo, LABELS | {"ignore": 2}, sources, batch_size=8, features=(8, 16, 32))
    torch.manual_seed(seed)
    made = train(make_trainer(base, ConditionalFiLMTrainer, fold="all", initial_lr=1e-2), STEPS, seed)
    return [network_dice(made, sign) for sign in BOTH]


def network_dice(network, sign):
    rng, scores = np.random.default_rng(300), []
    for _ in range(40):
        image, target = lesion(rng, True, sign)
        with torch.no_grad():
            found = network(torch.from_numpy(image)[None])[0].argmax(0).numpy()
        scores.append(dice(found == 1, target == 1))
    return float(np.mean(scores))
