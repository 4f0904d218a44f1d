"""Norms whose statistics several channels share, so that what an image shows is left in their means."""

from __future__ import annotations

from math import gcd

from torch import nn

CHANNELS = 16  # of a group, where the width allows it


def group_norm(features: int) -> nn.GroupNorm:
    """Build a group norm with groups of about CHANNELS channels, of equal size; one group for fewer.

    An instance norm (groups of one channel) would give every channel of every image the same mean.
    """
    return nn.GroupNorm(gcd(features, max(1, features // CHANNELS)), features)
