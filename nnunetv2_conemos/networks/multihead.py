"""A planned U-Net with one output channel per label, as the baselines use it.

Axis letters: **B** sample, **M** input channel, **K** labels, **Q** queried labels, **A** output labels, ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from nnunetv2_conemos.errors import UnsupportedError
from nnunetv2_conemos.networks.base import PartialLabelNetwork
from nnunetv2_conemos.networks.heads import chosen_channels, chosen_heads, is_head, label_vs_rest
from nnunetv2_conemos.networks.spec import NetworkSpec
from nnunetv2_conemos.records import Query


class MultiHeadUNet(PartialLabelNetwork):
    """A network of all labels in one pass: independent sigmoids, or with `softmax` classes that exclude each other.

    The network of a softmax has a background channel too. It is subtracted from the others, so that nnU-Net's softmax
    over its heads (background 0) is the softmax of the network.
    """

    def __init__(self, spec: NetworkSpec, softmax: bool = False):
        super().__init__(spec)
        unet = spec.planned_unet(spec.num_labels + softmax)
        self.encoder, self.decoder, self.softmax = unet.encoder, unet.decoder, softmax

    def queried_logits(self, query: Query) -> list[Tensor]:
        return [chosen_channels(logits, query.labels) for logits in self._scales(query.image)]

    def output_logits(self, image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B A *S"]:
        logits = self._scales(image)[0]
        return label_vs_rest(logits, self.output_labels) if self.softmax else self.output_channels(logits)

    def stock_weights(self, labels: Sequence[int]) -> dict[str, Tensor]:
        """Return the weights of the stock network with one output, against background, for each of these labels.

        Raises NotImplementedError for some labels of a softmax: the others compete with them.
        """
        weights = self.state_dict()
        if self.softmax:
            if len(labels) < self.num_labels:
                raise UnsupportedError("labels of a softmax are predicted together: export all (without --label).")
            weights = {key: value[1:] - value[:1] if is_head(key) else value for key, value in weights.items()}
        return chosen_heads(weights, labels)

    def _scales(self, image: Float[Tensor, "B M *S"]) -> list[Tensor]:
        output = self.decoder(self.encoder(image))
        scales = output if isinstance(output, list) else [output]
        return [z[:, 1:] - z[:, :1] for z in scales] if self.softmax else scales
