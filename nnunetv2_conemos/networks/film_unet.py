"""A planned U-Net conditioned on the label asked (Billot et al., CoNeMOS, MIDL 2024, PMLR 250:119-130).

Axis letters: **B** sample, **M** input channel, **K** labels, **Q** labels asked, **N** = B x Q, **E** length of the
code, ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from nnunetv2_conemos.networks.film import Condition, FiLM, FiLMConv, FiLMInstanceNorm, ReadBottleneck, film_block
from nnunetv2_conemos.networks.planned import Act, Step, UNet, conv_blocks, unet_steps

CODE_LENGTH = 64


class FiLMOptions(BaseModel):
    """Options of a plans configuration under the key `conemos`.

    `last_layers`: modulate only the last n layers, the logits being the last (0 = all, the method).
    `after_nonlinearity`: FiLM after the nonlinearity (the reference placement) instead of inside the norm.
    `image_features`: the decoder's layers also see the bottleneck features, averaged over space.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    last_layers: int = Field(default=0, ge=0)
    after_nonlinearity: bool = False
    image_features: bool = False


class FiLMUNet(nn.Module):
    """A planned U-Net every norm of which, encoder included, and the logits are modulated by a code of what is asked.

    `answered`: the labels (1..K) that prediction computes. `label_dims`: parameters with a dimension over labels.
    """

    label_dims: ClassVar[dict[str, int]] = {"embed.0.weight": 1}
    options_model: ClassVar[type[FiLMOptions]] = FiLMOptions
    encoder: Any
    decoder: Any

    def __init__(
        self,
        unet: UNet,
        num_labels: int,
        background_head: bool,
        options: FiLMOptions | None = None,
        output_labels: Sequence[int] | None = None,
    ):
        super().__init__()
        self.output_labels = tuple(range(1, num_labels + 1)) if output_labels is None else tuple(output_labels)
        self.encoder, self.decoder = unet.encoder, unet.decoder
        self.num_labels, self.background_head = num_labels, background_head
        self.options: Any = options or self.options_model()
        self.condition = Condition()
        self.embed = label_code(num_labels)
        self.bottleneck = ReadBottleneck(self.condition) if self.options.image_features else nn.Identity()
        self._modulate()

    def _modulate(self) -> None:
        blocks, n, image = conv_blocks(self), self.options.last_layers, 0
        if self.options.image_features:
            image = self.encoder.output_channels[-1]
        in_decoder = set(self.decoder.stages.modules())
        for block in blocks[max(0, len(blocks) - n + 1) :] if n else blocks:
            if not hasattr(block, "norm"):
                raise NotImplementedError(
                    "FiLM modulates norms; the plans set `norm_op` to none. Use plans with norms."
                )
            film = FiLM(self.condition, CODE_LENGTH, block.output_channels, image if block in in_decoder else 0)
            film_block(block, film, self.options.after_nonlinearity)
        heads = self.decoder.seg_layers
        for i, head in enumerate(heads):
            heads[i] = FiLMConv(head, FiLM(self.condition, CODE_LENGTH, head.out_channels, image))

    def steps(self) -> tuple[list[Step], list[Step]]:
        """The steps before the first modulated layer, run once per image, and the rest, run for each code."""
        steps = [
            s._replace(act=Act.APPLY, module=self.bottleneck) if s.act is Act.TURN else s for s in unet_steps(self)
        ]
        first = next(i for i, s in enumerate(steps) if s.module is not None and reads_condition(s.module))
        return steps[:first], steps[first:]

    def code(self, queried: Bool[Tensor, "N K"]) -> Float[Tensor, "N E"]:
        """The code of the labels asked, one row for each sample of the features."""
        return self.embed(queried.to(next(self.embed.parameters()).dtype))

    @torch.no_grad()
    def folded(self, labels: Sequence[int]) -> dict[str, Tensor]:
        """Weights of the stock network that gives the same answers when these labels (1..K) are asked.

        For a fixed question FiLM is part of the affine weights of norms and logits. Raises NotImplementedError where
        FiLM depends on the image or follows the nonlinearity.
        """
        if self.options.after_nonlinearity or self.options.image_features:
            raise NotImplementedError(
                "FiLM after the nonlinearity or on image features does not fold into a stock network."
            )
        weights = {k: v for k, v in self.state_dict().items() if k.startswith(("encoder.", "decoder."))}
        queried = torch.tensor([labels], device=next(self.parameters()).device)
        self.condition.code = self.code(multi_hot(queried, self.num_labels))
        for name, module in self.named_modules(remove_duplicate=False):
            if isinstance(module, FiLMInstanceNorm | FiLMConv):
                weights[f"{name}.weight"], weights[f"{name}.bias"] = module.folded()
        self.condition.clear()
        return {k: v for k, v in weights.items() if ".film." not in k}


def multi_hot(labels: Int[Tensor, "N Q"], num_labels: int) -> Bool[Tensor, "N K"]:
    """Which labels (1..K) a row asks; 0 asks nothing."""
    return F.one_hot(labels.long(), num_labels + 1)[..., 1:].any(1)


def reads_condition(module: nn.Module) -> bool:
    return any(isinstance(m, FiLM) for m in module.modules())


def label_code(num_labels: int) -> nn.Sequential:
    """One-hot label [N,K] -> code [N,E]: four dense layers of 64 with LeakyReLU(0.2).

    Initialised so that every label starts with a code of its own at unit scale; the framework's default would shrink
    the differences between labels by an order of magnitude.
    """
    layers: list[nn.Module] = []
    for i in range(4):
        dense = nn.Linear(num_labels if i == 0 else CODE_LENGTH, CODE_LENGTH)
        if i == 0:
            nn.init.normal_(dense.weight)  # one column per label is one code
        else:
            nn.init.kaiming_normal_(dense.weight, a=0.2, nonlinearity="leaky_relu")
        nn.init.zeros_(dense.bias)
        layers += [dense, nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers)
