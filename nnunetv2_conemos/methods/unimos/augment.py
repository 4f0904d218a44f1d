"""Views of unlabelled images, made on the device of the network (UniMatch: Yang et al., CVPR 2023; UniMOS).

Axis letters: **B** sample, **M** input channel, **D** dimension, ***S** space.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

JITTER, JITTER_SHARE = (0.5, 1.5), 0.8  # factors of brightness and of contrast
SIGMA, BLUR_SHARE = (0.1, 2.0), 0.5  # of the in-plane blur, in voxels
BOX_SHARE, BOX_ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)  # of the patch; longest ratio of two sides, relative to the patch


def turned(image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B M *S"]:
    """Rotate each sample by a random multiple of 90 degrees in the plane of the last two axes, if that is square."""
    if image.shape[-1] != image.shape[-2]:
        return image
    times = torch.randint(0, 4, (len(image),)).tolist()
    return torch.stack([torch.rot90(x, k, (-2, -1)) for x, k in zip(image, times, strict=True)])


def photometric(image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B M *S"]:
    """Change brightness, contrast and blur at random for each sample, within the range of each channel."""
    axes = tuple(range(2, image.ndim))
    lowest, highest = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    scale = (highest - lowest).clamp_min(1e-8)
    x = (image - lowest) / scale
    jittered = (x * factor(x)).clamp(0, 1)
    mean = jittered.mean(axes, keepdim=True)
    jittered = ((jittered - mean) * factor(x) + mean).clamp(0, 1)
    x = torch.where(chosen(x, JITTER_SHARE), jittered, x)
    with torch.autocast(x.device.type, enabled=False):  # half precision would round values out of the range
        x = torch.where(chosen(x, BLUR_SHARE), blurred(x), x)
    return x * scale + lowest


def factor(x: Tensor) -> Tensor:
    """Sample a factor of brightness or contrast for each sample of a batch."""
    return per_sample(x, torch.empty(len(x), device=x.device).uniform_(*JITTER))


def chosen(x: Tensor, share: float) -> Tensor:
    """Choose a share of the samples at random."""
    return per_sample(x, torch.rand(len(x), device=x.device) < share)


def per_sample(x: Tensor, values: Tensor) -> Tensor:
    """Reshape a value per sample so that it broadcasts over channels and space."""
    return values.view(-1, *(1,) * (x.ndim - 1))


def blurred(x: Float[Tensor, "B M *S"]) -> Float[Tensor, "B M *S"]:
    """Blur in the plane of the last two axes with a Gaussian of random width for each sample."""
    sigma = torch.empty(len(x), 1, device=x.device).uniform_(*SIGMA)
    radius = min(math.ceil(3 * SIGMA[1]), min(x.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma**2), dim=1)  # [B,2R+1]
    planes = x.reshape(1, -1, *x.shape[-2:])
    weight = kernel.repeat_interleave(planes.shape[1] // len(x), 0)[:, None]
    padded = F.pad(planes, (radius,) * 4, mode="reflect")
    for window in (weight[..., None, :], weight[..., None]):
        padded = F.conv2d(padded, window, groups=planes.shape[1])
    return padded.reshape(x.shape)


def cutmix_boxes(shape: torch.Size, device: torch.device) -> Bool[Tensor, "B 1 *S"]:
    """Mark a random box per sample; its share of the patch and its aspect ratio are resampled until it fits."""
    inside = torch.zeros((shape[0], 1, *shape[2:]), dtype=torch.bool, device=device)
    for sample in inside:
        sides = drawn_sides(shape[2:])
        start = [int(torch.randint(0, size - side + 1, ())) for size, side in zip(shape[2:], sides, strict=True)]
        sample[(slice(None), *(slice(a, a + side) for a, side in zip(start, sides, strict=True)))] = True
    return inside


def drawn_sides(size: torch.Size) -> list[int]:
    """Sample sides in voxels; the ratios of any two, relative to the patch, stay within BOX_ASPECT."""
    bound = math.log(BOX_ASPECT[1]) / 2
    while True:
        share = torch.empty(()).uniform_(*BOX_SHARE).item()
        skew = torch.empty(len(size)).uniform_(-bound, bound)
        relative = share ** (1 / len(size)) * torch.exp(skew - skew.mean())
        sides = [max(1, round(part * whole)) for part, whole in zip(relative.tolist(), size, strict=True)]
        if all(side <= whole for side, whole in zip(sides, size, strict=True)):
            return sides


def cutmix(inside: Bool[Tensor, "B 1 *S"], other: Tensor, own: Tensor) -> Tensor:
    """Fill the boxes from another image and keep the original elsewhere; [B,M,*S] images or [B,*S] maps."""
    return torch.where(inside if own.ndim == inside.ndim else inside[:, 0], other, own)
