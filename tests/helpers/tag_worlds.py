"""Volumes of several channels, some with masks and some with image tags, and trainers on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from worlds import make_trainer, train, write_world

from nnunetv2_conemos.methods import CMERTrainer

LESION = {"background": 0, "lesion": 1}
TINY = {"width_divisor": 16}
MASKS = {"cases": ["m*"], "annotated": ["lesion"]}
TAGGED = {"cases": ["t*"], "annotated": [], "tagged": ["lesion"]}


def volume(rng, channels=2, depth=4, size=16):
    target = np.zeros((depth, size, size), dtype=np.int8)
    for z in range(0, depth, 2):
        y, x = rng.integers(2, size - 6, 2)
        target[z, y : y + 4, x : x + 4] = 1
    image = rng.normal(0, 0.3, (channels, *target.shape)) + target
    return image.astype(np.float32), target


def slices_of(target):
    return np.flatnonzero((target == 1).any((1, 2))).tolist()


def tagged_world(base, masks=6, tagged=6, poison=None, bits=slices_of, channels=2, options=TINY, depth=4, **more):
    """Cases with label maps (m*) and with tags (t*), whose label maps are zeros or poisoned."""
    rng = np.random.default_rng(0)
    cases, tags = {}, {}
    for i in range(masks):
        cases[f"m{i}"] = volume(rng, channels, depth)
    for i in range(tagged):
        image, target = volume(rng, channels, depth)
        cases[f"t{i}"] = image, np.zeros_like(target) if poison is None else poison(target)
        tags[f"t{i}"] = {"lesion": bits(target)}
    sources = {name: s for name, s, n in (("masks", MASKS, masks), ("tagged", TAGGED, tagged)) if n}
    more = {"tags": {"cases": tags}} | more
    return write_world(base, cases, LESION, sources, options=options, **more)


def trained(base, steps=2, trainer=CMERTrainer):
    torch.manual_seed(0)
    made = make_trainer(base, trainer)
    train(made, steps)
    return made


def log_of(trainer):
    """The text of the log of a training."""
    return Path(trainer.log_file).read_text()
