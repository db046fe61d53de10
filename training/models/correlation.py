"""Pixel correlation (PCM, SEAM, Wang et al., CVPR 2020) on a ResNet-38d: one of L2G's two nets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss_rt.training.models.resnet38d import ResNet38d, Taps

_EPSILON = 1e-5


@dataclass(frozen=True)
class Correlated:
    """What the net says of a batch.

    Attributes:
        featmap: (B, C + 1, h, w), plain maps and correlated ones added, of either sign; background is last.
        logits: (B, C), means of the class channels.
    """

    featmap: Tensor
    logits: Tensor


class CorrelationNet(nn.Module):
    """Class maps, and the same again spread over pixels of alike features.

    Args:
        trunk: its trunk.
        num_classes: C; the head has one output more, the last, for background.
    """

    def __init__(self, trunk: ResNet38d, num_classes: int) -> None:
        super().__init__()
        fourth, fifth, sixth = trunk.tap_widths
        narrow, wide = max(1, fourth // 8), max(1, fifth // 8)
        self.trunk = trunk
        self.fc8 = nn.Conv2d(sixth, num_classes + 1, 1, bias=False)
        self.f8_3 = nn.Conv2d(fourth, narrow, 1, bias=False)
        self.f8_4 = nn.Conv2d(fifth, wide, 1, bias=False)
        self.f9 = nn.Conv2d(narrow + wide + 3, narrow + wide, 1, bias=False)
        for layer in (self.f8_3, self.f8_4):
            nn.init.kaiming_normal_(layer.weight)
        for layer in (self.fc8, self.f9):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, images: Tensor) -> Correlated:
        """Maps and logits of (B, 3, H, W) normalised images of any size."""
        taps = self.trunk(images)
        cam = self.fc8(taps.conv6)
        return self._result(cam, self._spread(cam, self._relations(images, taps)[1]))

    def intermediates(self, images: Tensor) -> dict[str, Tensor]:
        """Values on the way, with the batch dimension, but ``pcm_affinity`` (hw, hw) of a single image."""
        taps = self.trunk(images)
        cam = self.fc8(taps.conv6)
        joined, related = self._relations(images, taps)
        cam_att = self._spread(cam, related)
        result = self._result(cam, cam_att)
        similar = self._similarity(related)
        affinity = similar / (similar.sum(dim=1, keepdim=True) + _EPSILON)
        return {
            "input": images,
            "logits": result.logits,
            "featmap": result.featmap,
            "cam": cam,
            "cam_att": cam_att,
            "pcm_in": joined,
            "pcm_f": related,
            "pcm_affinity": affinity[0] if len(affinity) == 1 else affinity,
            "conv4_ch0_15": taps.conv4[:, :16],
            "conv5_ch0_15": taps.conv5[:, :16],
            "conv6_ch0_31": taps.conv6[:, :32],
        }

    def _relations(self, images: Tensor, taps: Taps) -> tuple[Tensor, Tensor]:
        """Input and output of f9; the trunk learns nothing from them."""
        size = (taps.conv6.shape[-2], taps.conv6.shape[-1])
        small = functional.interpolate(images, size=size, mode="bilinear", align_corners=True)
        joined = torch.cat((small, self.f8_3(taps.conv4.detach()), self.f8_4(taps.conv5.detach())), dim=1)
        return joined, self.f9(joined)

    @staticmethod
    def _similarity(related: Tensor) -> Tensor:
        """Rectified cosine of all pairs of pixels, (B, hw, hw)."""
        flat = related.flatten(2)
        unit = flat / (torch.linalg.vector_norm(flat, dim=1, keepdim=True) + _EPSILON)
        return functional.relu(unit.transpose(1, 2) @ unit)

    def _spread(self, cam: Tensor, related: Tensor) -> Tensor:
        """Maps times the affinity whose columns sum to 1.

        The official code spreads the thousands of channels under the head, which is linear and has no bias:
        spreading what it gives is the same. A row of ones brings the sums along, so that the matrix is read
        once and never divided.
        """
        similar = self._similarity(related)
        rows = torch.cat((cam, torch.ones_like(cam[:, :1])), dim=1).flatten(2) @ similar
        return (rows[:, :-1] / (rows[:, -1:] + _EPSILON)).reshape(cam.shape)

    @staticmethod
    def _result(cam: Tensor, cam_att: Tensor) -> Correlated:
        featmap = cam + cam_att
        return Correlated(featmap, featmap[:, :-1].mean(dim=(2, 3)))
