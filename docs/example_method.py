"""A whole new conditioning method: the queried label becomes input channels (the simplest conditioning there is)."""

import torch
import torch.nn.functional as F

from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.networks.base import PartialLabelNetwork
from nnunetv2_conemos.networks.spec import NetworkSpec
from nnunetv2_conemos.records import Query
from nnunetv2_conemos.training.method import Method, without_options
from nnunetv2_conemos.training.sampling import Pairs
from nnunetv2_conemos.training.trainer import PartialLabelTrainer


class LabelAsInputUNet(PartialLabelNetwork):
    """A one-output U-Net that sees the one-hot queried label as K constant input channels."""

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        unet = spec.planned_unet(1, num_input_channels=spec.num_input_channels + spec.num_labels)
        self.encoder, self.decoder = unet.encoder, unet.decoder

    def queried_logits(self, query: Query) -> list[torch.Tensor]:  # [B,Q,*S] at each scale, fine to coarse
        onehot = F.one_hot(query.labels.flatten(), self.num_labels + 1)[:, 1:].to(query.image)
        image = query.image.repeat_interleave(query.labels.shape[1], 0)
        planes = onehot.view(*onehot.shape, *(1,) * (image.ndim - 2)).expand(-1, -1, *image.shape[2:])
        logits = self.decoder(self.encoder(torch.cat((image, planes), dim=1)))
        scales = logits if isinstance(logits, list) else [logits]
        return [z.view(*query.labels.shape, *z.shape[2:]) for z in scales]

    def output_logits(self, image: torch.Tensor) -> torch.Tensor:  # [B,A,*S]
        return self.queried_logits(Query(image, self.output_queries(image)))[0]


class LabelAsInputTrainer(PartialLabelTrainer):
    method = Method(network=LabelAsInputUNet, sampler=Pairs(), loss=without_options(MaskedDiceBCE))
