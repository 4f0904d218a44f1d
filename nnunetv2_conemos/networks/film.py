"""Feature-wise linear modulation of a planned U-Net (Perez et al., AAAI 2018; as used by CoNeMOS, MIDL 2024).

Axis letters: **B** images, **N** rows of the condition (images x queried labels), **E** length of the code,
**F** features, **O** outputs, ***S** space.
Modulated layers keep the parameter names of the layers they replace, so that backbone weights load by name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from nnunetv2_conemos.networks.planned import repeat_samples


class Condition:
    """The shared condition that all modulated layers of a network read, set in its `forward`."""

    code: Tensor | None = None  # [N,E], one row for each image and query
    image: Tensor | None = None  # [B,F], bottleneck features averaged over space, one row per image

    def clear(self) -> None:
        """Clear the condition, so that no graph is kept alive between calls."""
        self.code = self.image = None


class FiLM(nn.Module):
    """Modulation y = (1 + gamma) x + beta, with gamma, beta [N,F] from one dense layer; the identity at first.

    With `image_length` > 0 the dense layer also reads the pooled bottleneck features, which are that long.
    """

    def __init__(self, condition: Condition, code_length: int, features: int, image_length: int = 0):
        super().__init__()
        self.condition, self.reads_image = condition, image_length > 0
        self.project = nn.Linear(code_length + image_length, 2 * features)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def coefficients(self) -> tuple[Float[Tensor, "N F"], Float[Tensor, "N F"]]:
        code, image = self.condition.code, self.condition.image
        if code is None:
            raise RuntimeError("a FiLM layer was called outside the forward() of its network: call the network.")
        if self.reads_image and image is not None:
            code = torch.cat((code, repeat_samples(image, code.shape[0] // image.shape[0])), dim=1)
        gamma, beta = self.project(code).chunk(2, dim=1)
        return gamma, beta

    def forward(self, x: Float[Tensor, "N F *S"]) -> Float[Tensor, "N F *S"]:
        gamma, beta = (c.view(*c.shape, *(1,) * (x.ndim - 2)) for c in self.coefficients())
        return x * (1 + gamma) + beta


class FiLMInstanceNorm(nn.Module):
    """Instance norm and FiLM in one operation: per-sample weight w(1+gamma) and bias b(1+gamma)+beta."""

    def __init__(self, norm: _InstanceNorm, film: FiLM):
        super().__init__()
        self.weight, self.bias, self.eps, self.film = norm.weight, norm.bias, norm.eps, film

    def forward(self, x: Float[Tensor, "N F *S"]) -> Float[Tensor, "N F *S"]:
        weight, bias = modulate(self.weight, self.bias, *self.film.coefficients())
        stacked = x.reshape(1, -1, *x.shape[2:])
        return F.instance_norm(stacked, weight=weight.flatten(), bias=bias.flatten(), eps=self.eps).view_as(x)

    def folded(self) -> tuple[Float[Tensor, " F"], Float[Tensor, " F"]]:
        """Return weight and bias of the plain norm that does the same for the one code in the condition."""
        weight, bias = modulate(self.weight, self.bias, *self.film.coefficients())
        return weight[0], bias[0]


class FiLMConv(nn.Module):
    """A convolution to logits followed by FiLM."""

    def __init__(self, conv: _ConvNd, film: FiLM):
        super().__init__()
        self.weight, self.bias, self.film = conv.weight, conv.bias, film
        self.convolve = F.conv2d if conv.weight.ndim == 4 else F.conv3d

    def forward(self, x: Float[Tensor, "N F *S"]) -> Float[Tensor, "N O *S"]:
        return self.film(self.convolve(x, self.weight, self.bias))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the plain convolution that does the same for the one code in the condition."""
        (gamma,), (beta,) = self.film.coefficients()
        scale = (1 + gamma).view(-1, *(1,) * (self.weight.ndim - 1))
        return self.weight * scale, (0 if self.bias is None else self.bias * (1 + gamma)) + beta


class FiLMAfter(nn.Module):
    """Any layer followed by FiLM as a separate operation."""

    def __init__(self, inner: nn.Module, film: FiLM):
        super().__init__()
        self.inner, self.film = inner, film

    def forward(self, x: Float[Tensor, "N F *S"]) -> Float[Tensor, "N F *S"]:
        return self.film(self.inner(x))


def modulate(
    weight: Float[Tensor, " F"] | None,
    bias: Float[Tensor, " F"] | None,
    gamma: Float[Tensor, "N F"],
    beta: Float[Tensor, "N F"],
) -> tuple[Float[Tensor, "N F"], Float[Tensor, "N F"]]:
    """Return the affine parameters of a norm with FiLM after it; this also folds a label into a stock network."""
    scale = 1 + gamma
    return (scale if weight is None else weight * scale), (beta if bias is None else bias * scale + beta)


def film_block(block: ConvDropoutNormReLU, film: FiLM, after_nonlinearity: bool) -> None:
    """Modulate one conv block in place: at its norm, or after its nonlinearity if it has one."""
    if after_nonlinearity and hasattr(block, "nonlin"):
        _replace(block, "nonlin", FiLMAfter(block.nonlin, film))
    elif isinstance(block.norm, _InstanceNorm) and not block.norm.track_running_stats:
        _replace(block, "norm", FiLMInstanceNorm(block.norm, film))
    else:
        _replace(block, "norm", FiLMAfter(block.norm, film))


def _replace(block: ConvDropoutNormReLU, name: str, new: nn.Module) -> None:
    """Replace a module in both places where a block keeps it: the attribute and the sequence that runs."""
    position = list(block.all_modules).index(getattr(block, name))
    setattr(block, name, new)
    block.all_modules[position] = new
