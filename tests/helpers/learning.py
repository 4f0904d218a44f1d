"""Toy worlds that networks learn in seconds, and how well they did."""

from __future__ import annotations

import numpy as np
import torch
from worlds import dice, shapes

FEATURES = (8, 16, 32)


def grouped_cases(rng, squares=12, discs=12):
    """Group A annotates squares only, group B discs only; every image holds both."""
    cases = {}
    for group, number, label in (("a", squares, 1), ("b", discs, 2)):
        for i in range(number):
            image, target = shapes(rng)
            cases[f"{group}{i:02d}"] = image, np.where(target == label, target, 0).astype(np.int8)
    return cases


def scores(network, rng, to_map, labels=(1, 2), number=8, draw=shapes):
    """Mean Dice of each label over new, completely annotated images."""
    per_label = {label: [] for label in labels}
    for _ in range(number):
        image, target = draw(rng)
        with torch.no_grad():
            predicted = to_map(network(torch.from_numpy(image)[None]))
        for label in labels:
            per_label[label].append(dice(predicted == label, target[0] == label))
    return {label: float(np.mean(values)) for label, values in per_label.items()}


def argmax(logits):
    return logits[0].argmax(0).numpy()
