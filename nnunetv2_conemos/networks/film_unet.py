"""A planned U-Net conditioned on the queried label or labels (Billot et al., CoNeMOS, MIDL 2024, PMLR 250:119-130).

Axis letters: **B** sample, **K** labels, **Q** queried labels, **N** rows of the condition (images, or
images x labels), **E** length of the code, ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from pydantic import Field
from torch import Tensor, nn

from nnunetv2_conemos.errors import UnsupportedError
from nnunetv2_conemos.networks.base import PartialLabelNetwork
from nnunetv2_conemos.networks.film import Condition, FiLM, FiLMConv, FiLMInstanceNorm, film_block
from nnunetv2_conemos.networks.planned import UNetState, conv_blocks, num_stages, run_stages
from nnunetv2_conemos.networks.spec import MethodOptions, NetworkSpec

CODE_LENGTH = 64


class FiLMOptions(MethodOptions):
    """Options of a plans configuration under the key `conemos`.

    `last_layers`: modulate only the last n layers, the logits being the last (0 = all, as published).
    `after_nonlinearity`: FiLM after the nonlinearity (the reference placement) instead of inside the norm.
    `image_features`: the decoder's layers are also conditioned on the bottleneck features, averaged over space.
    """

    last_layers: int = Field(default=0, ge=0)
    after_nonlinearity: bool = False
    image_features: bool = False


class FiLMUNet(PartialLabelNetwork):
    """A planned U-Net whose every norm, encoder included, and whose logits are modulated by a code of the query.

    `label_dims`: parameters with a dimension over labels.
    """

    label_dims: ClassVar[dict[str, int]] = {"embed.0.weight": 1}
    options_model: ClassVar[type[FiLMOptions]] = FiLMOptions

    def __init__(self, spec: NetworkSpec, num_outputs: int):
        super().__init__(spec)
        unet = spec.planned_unet(num_outputs)
        self.encoder, self.decoder = unet.encoder, unet.decoder
        self.options: Any = spec.options(self.options_model)
        self.condition = Condition()
        self.embed = label_code(self.num_labels)
        self.first_modulated_stage = self._modulate()

    def _modulate(self) -> int:
        """Modulate the last layers; return the first stage in which a norm is modulated, or one past the last."""
        stages = [*self.encoder.stages, *self.decoder.stages]
        blocks = [*conv_blocks(self.encoder), *conv_blocks(self.decoder.stages)]
        n, in_decoder = self.options.last_layers, set(conv_blocks(self.decoder.stages))
        image = self.encoder.output_channels[-1] if self.options.image_features else 0
        chosen = blocks[max(0, len(blocks) - n + 1) :] if n else blocks
        for block in chosen:
            if not hasattr(block, "norm"):
                raise UnsupportedError("FiLM modulates norms; the plans set `norm_op` to none. Use plans with norms.")
            film = FiLM(self.condition, CODE_LENGTH, block.output_channels, image if block in in_decoder else 0)
            film_block(block, film, self.options.after_nonlinearity)
        heads = self.decoder.seg_layers
        for i, head in enumerate(heads):
            heads[i] = FiLMConv(head, FiLM(self.condition, CODE_LENGTH, head.out_channels, image))
        if len(chosen) == len(blocks):
            return 0  # the stem is modulated too
        modulated = (number for number, stage in enumerate(stages) if not set(chosen).isdisjoint(stage.modules()))
        return next(modulated, len(stages))

    def shared(self, image: Tensor) -> UNetState:
        """Run the stages before the first modulated layer, once per image."""
        return self._run(UNetState(image), range(self._first_conditioned()))

    def conditioned(self, state: UNetState, queried: Bool[Tensor, "N K"]) -> list[Tensor]:
        """Run the other stages on features [N,F,*S], each with the labels of its row; return logits, fine to coarse."""
        self.condition.code = self.embed(queried.to(next(self.embed.parameters()).dtype))
        logits = self._run(state, range(self._first_conditioned(), num_stages(self))).logits
        return list(logits[::-1])

    def clear_condition(self) -> None:
        self.condition.clear()

    def _first_conditioned(self) -> int:
        """Return the first stage that ends in logits or holds a modulated norm."""
        with_logits = len(self.encoder.stages) if self.decoder.deep_supervision else num_stages(self) - 1
        return min(self.first_modulated_stage, with_logits)

    def _run(self, state: UNetState, stages: range) -> UNetState:
        bottleneck = len(self.encoder.stages)
        if not (self.options.image_features and stages.start < bottleneck <= stages.stop):
            return run_stages(self, state, stages)
        state = run_stages(self, state, range(stages.start, bottleneck))
        self.condition.image = state.features.flatten(2).mean(2)
        return run_stages(self, state, range(bottleneck, stages.stop))

    @torch.no_grad()
    def folded(self, labels: Sequence[int]) -> dict[str, Tensor]:
        """Return the weights of the stock network that gives the same logits when these labels (1..K) are queried.

        For a fixed query FiLM is part of the affine weights of norms and logits. Raises NotImplementedError where FiLM
        depends on the image or follows the nonlinearity.
        """
        if self.options.after_nonlinearity or self.options.image_features:
            raise UnsupportedError(
                "FiLM after the nonlinearity or on image features does not fold into a stock network."
            )
        weights = {k: v for k, v in self.state_dict().items() if k.startswith(("encoder.", "decoder."))}
        queried = torch.tensor([labels], device=next(self.parameters()).device)
        self.condition.code = self.embed(multi_hot(queried, self.num_labels).to(next(self.embed.parameters()).dtype))
        for name, module in self.named_modules(remove_duplicate=False):
            if isinstance(module, FiLMInstanceNorm | FiLMConv):
                weights[f"{name}.weight"], weights[f"{name}.bias"] = module.folded()
        self.condition.clear()
        return {k: v for k, v in weights.items() if ".film." not in k}


def multi_hot(labels: Int[Tensor, "N Q"], num_labels: int) -> Bool[Tensor, "N K"]:
    """Mark the labels (1..K) that each row queries; 0 is padding."""
    return F.one_hot(labels.long(), num_labels + 1)[..., 1:].any(1)


def label_code(num_labels: int) -> nn.Sequential:
    """Build the layers from a multi-hot row of labels [N,K] to its code [N,E]: four of 64 features with LeakyReLU(0.2).

    Initialised so that every label starts with a distinct code at unit scale; PyTorch's default would shrink
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
