"""A whole new conditioning method: the label asked becomes input channels (the simplest conditioning there is)."""

import torch
import torch.nn.functional as F
from torch import nn

from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.networks.planned import planned_unet
from nnunetv2_conemos.records import Query
from nnunetv2_conemos.training.method import Method
from nnunetv2_conemos.training.plans_facts import has_background_head
from nnunetv2_conemos.training.sampling import Pairs
from nnunetv2_conemos.training.trainer import PartialLabelTrainer


class LabelAsInputUNet(nn.Module):
    """A one-output U-Net that sees the one-hot label asked as K constant input channels."""

    def __init__(self, unet: nn.Module, num_labels: int, background_head: bool):
        super().__init__()
        self.encoder, self.decoder = unet.encoder, unet.decoder
        self.num_labels, self.background_head = num_labels, background_head

    def forward(self, query):
        if isinstance(query, Query):  # the labels asked, [B,Q,*S], a list over scales under deep supervision
            scales = self.answer(query)
            return scales if self.decoder.deep_supervision else scales[0]
        every_label = torch.arange(1, self.num_labels + 1, device=query.device).expand(len(query), -1)
        logits = self.answer(Query(query, every_label))[0]
        background = torch.zeros_like(logits[:, : int(self.background_head)])
        return torch.cat((background, logits), dim=1)  # nnU-Net's heads

    def answer(self, query: Query) -> list[torch.Tensor]:
        onehot = F.one_hot(query.labels.flatten(), self.num_labels + 1)[:, 1:].to(query.image)
        image = query.image.repeat_interleave(query.labels.shape[1], 0)
        planes = onehot.view(*onehot.shape, *(1,) * (image.ndim - 2)).expand(-1, -1, *image.shape[2:])
        logits = self.decoder(self.encoder(torch.cat((image, planes), dim=1)))
        scales = logits if isinstance(logits, list) else [logits]
        return [z.view(*query.labels.shape, *z.shape[2:]) for z in scales]


def label_as_input(plans, configuration, channels, heads, deep_supervision):
    background = has_background_head(plans)
    num_labels = heads - background
    unet = planned_unet(configuration, channels + num_labels, 1, deep_supervision)
    return LabelAsInputUNet(unet, num_labels, background)


class LabelAsInputTrainer(PartialLabelTrainer):
    method = Method(network=label_as_input, sampler=Pairs(), loss=MaskedDiceBCE)
