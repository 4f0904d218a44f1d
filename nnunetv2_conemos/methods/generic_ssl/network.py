"""One encoder for images and for noisy label maps, and three decoders (A&D: Wang & Li, NeurIPS 2023).

Axis letters: **B** sample, **M** input channel, **K** labels, **Q** queried labels, **A** output labels,
**C** = K + 1 classes, background first, ***S** space.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nnunetv2_conemos.methods.generic_ssl.difficulty import ClassDifficulty
from nnunetv2_conemos.methods.generic_ssl.diffusion import ddim_sample
from nnunetv2_conemos.methods.generic_ssl.vnet import Decoder, Encoder, Shape, TimeEmbedding
from nnunetv2_conemos.methods.generic_ssl.voting import VotingRight
from nnunetv2_conemos.networks.base import PartialLabelNetwork
from nnunetv2_conemos.networks.heads import chosen_channels, label_vs_rest
from nnunetv2_conemos.networks.spec import NetworkSpec
from nnunetv2_conemos.records import Query


class Noisy(NamedTuple):
    """Images [B,M,*S], noisy maps of their classes [B,C,*S], and the step of the diffusion [B] of these maps."""

    image: Tensor
    maps: Tensor
    step: Tensor


class BothStreams(NamedTuple):
    """Inputs of a training step with gradients: annotated images with noisy maps, unlabelled images [B,M,*S].

    `unlabelled` is None where nothing is learnt from unlabelled images.
    """

    annotated: Noisy
    unlabelled: Tensor | None


class AggregateDecouple(PartialLabelNetwork):
    """One encoder for three decoders: `denoiser` and `reweighted` learn from annotations, `decoder` from pseudo-labels.

    `decoder` predicts or, where nothing is learnt from pseudo-labels (`learns_unlabelled`), `reweighted` does.

    `voting`: whether the diffusion may vote on pseudo-labels; None where it always does.

    `of_classes`: parameters that mean something for the labels in their order only. `BothStreams` gives the logits
    [B,C,*S] of the three decoders, or of two.
    """

    of_classes = (
        "denoiser.head",
        "reweighted.head",
        "decoder.head",
        "diffusion_stem.operation",
        "difficulty",
        "voting",
    )

    def __init__(self, spec: NetworkSpec, shape: Shape, learns_unlabelled: bool = True, votes_always: bool = True):
        super().__init__(spec)
        channels, classes = spec.num_input_channels, spec.num_labels + 1
        self.classes, self.learns_unlabelled = classes, learns_unlabelled
        self.image_stem = shape.unit(channels, 0, timed=False)
        self.diffusion_stem = shape.unit(channels + classes, 0, timed=False)
        self.time = TimeEmbedding()
        self.encoder = Encoder(shape)
        self.denoiser = Decoder(shape, classes, timed=True)
        self.reweighted, self.decoder = Decoder(shape, classes), Decoder(shape, classes)
        self.decoder.requires_grad_(learns_unlabelled)
        self.difficulty = ClassDifficulty(classes)
        self.voting = None if votes_always else VotingRight(classes)

    def queried_logits(self, query: Query) -> Float[Tensor, "B Q *S"]:
        return chosen_channels(self._all_labels(query.image), query.labels)

    def output_logits(self, image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B A *S"]:
        return label_vs_rest(self._all_labels(image), self.output_labels)

    def training_request(self, request: BothStreams) -> tuple[Float[Tensor, "B C *S"], ...]:
        annotated, unlabelled = request
        supervised = self.denoise(annotated), self.reweight(annotated.image)
        return supervised if unlabelled is None else (*supervised, self.decoder(self.encode(unlabelled)))

    def _all_labels(self, image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B K *S"]:
        predicting = self.decoder if self.learns_unlabelled else self.reweighted
        return against_background(predicting(self.encode(image)))

    def encode(self, image: Float[Tensor, "B M *S"]) -> list[Tensor]:
        """Return the features of images at every level, fine to coarse."""
        return self.encoder(self.image_stem(image))

    def denoise(self, noisy: Noisy) -> Float[Tensor, "B C *S"]:
        """Predict, as logits, what the maps were before noise was added."""
        time = self.time(noisy.step)
        return self.denoiser(self.encoder(self.diffusion_stem(torch.cat((noisy.image, noisy.maps), 1)), time), time)

    def reweight(self, image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B C *S"]:
        """Return the logits of the decoder that learns with weighted classes."""
        return self.reweighted(self.encode(image))

    def sampled_maps(self, image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B C *S"]:
        """Return maps in [-1, 1] that the diffusion samples for images, from noise."""
        noise = torch.randn(len(image), self.classes, *image.shape[2:], device=image.device)
        return ddim_sample(lambda maps, step: self.denoise(Noisy(image, maps, step)), noise)

    @torch.no_grad()
    def ema_update(self, kept: float) -> None:
        """Move the decoder of pseudo-labels towards the mean of the two others (EMA)."""
        denoising, weighted = (dict(decoder.named_parameters()) for decoder in (self.denoiser, self.reweighted))
        for name, own in self.decoder.named_parameters():
            own.mul_(kept).add_(denoising[name] + weighted[name], alpha=(1 - kept) / 2)


def against_background(logits: Float[Tensor, "B C *S"]) -> Float[Tensor, "B K *S"]:
    """Return the logits of the labels against background."""
    return logits[:, 1:] - logits[:, :1]
