"""L2G: a net that sees parts of an image teaches one that sees the whole (Jiang et al., CVPR 2022)."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from wsss_rt.errors import UsageError, nearest
from wsss_rt.model_card import MapRule, Recommended
from wsss_rt.training.losses import multilabel_soft_margin
from wsss_rt.training.models import l2g_transfer as transfer_ops
from wsss_rt.training.models.base import Localization, Localizer
from wsss_rt.training.models.conv_method import ConvMethod
from wsss_rt.training.models.correlation import CorrelationNet
from wsss_rt.training.models.resnet38d import ResNet38d


class L2G(ConvMethod, Localizer):
    """Two nets of one make that share nothing: the local one learns tags from crops, the global one from it.

    Only the global net localizes. It gets no gradient from the tags: with one, the paper reports 53.8 in
    place of 70.3 mIoU of its masks. Maps are of either sign; labelling rectifies them.

    Args:
        backbone: ResNet-38d; the local net begins as its copy.
        num_classes: C.
        img_size: side of the global view; 448 officially.
        views: local views per image; 6 in the script for PASCAL VOC, 4 in COCO's.
        view_size: their side in pixels; 0 takes 5/7 of ``img_size`` (320 of 448), in whole cells.
        corners: four of the views lie in the corners, as in VOC's script; all at random as in COCO's.
        transfer: how saliency enters the target, ``soft`` as in the released code or ``piecewise`` as in the
            paper. Without saliency maps attention itself is transferred.
        background_threshold: from which attention counts where there is saliency: 0.001 in VOC's script, 0.1
            in COCO's and in the paper.
        background_target: ``binary`` as in VOC's script or ``soft`` as in COCO's; of transfer ``soft``.
        weight: of what is transferred: 10 in VOC's script, 30 in COCO's.
        freeze_stem: the first two stages keep their weights, as pretrained ones should.
    """

    optional_planes = ("saliency",)
    new_layers = frozenset(("fc8", "f8_3", "f8_4", "f9"))
    map_rule = MapRule(upsample="bicubic", normalise="peak")
    official_settings = Recommended(
        background=0.25, scales=(1.0, 0.5, 1.5, 2.0), provenance="L2G's official generation, on PASCAL VOC"
    )

    def __init__(
        self,
        backbone: ResNet38d,
        *,
        num_classes: int,
        img_size: int,
        views: int = 6,
        view_size: int = 0,
        corners: bool = True,
        transfer: str = "soft",
        background_threshold: float = 0.001,
        background_target: str = "binary",
        weight: float = 10.0,
        freeze_stem: bool = True,
    ) -> None:
        super().__init__(backbone, num_classes=num_classes, img_size=img_size, freeze_stem=freeze_stem)
        self.view_size = view_size or max(8, img_size * 5 // 56 * 8)
        if views < 1 or not 8 <= self.view_size <= img_size:
            raise UsageError(
                f"{views} local views of {self.view_size} px do not fit an image of {img_size} px",
                fix="give at least one view, of 8 px up to img_size",
            )
        for name, value, choices in (
            ("transfer", transfer, transfer_ops.TRANSFERS),
            ("background_target", background_target, transfer_ops.BACKGROUND_TARGETS),
        ):
            if value not in choices:
                raise UsageError(f"unknown {name} {value!r}", fix=nearest(value, choices))
        self.views, self.corners, self.weight = views, corners, weight
        self.transfer, self.background_target = transfer, background_target
        self.background_threshold = background_threshold
        self.global_net = CorrelationNet(backbone, num_classes)
        # both begin with the same trunk, each with a head of its own
        self.local_net = CorrelationNet(copy.deepcopy(backbone), num_classes)

    def losses(self, images: Tensor, targets: Tensor, planes: Tensor | None = None) -> dict[str, Tensor]:
        """``local``: the tags of the local views; ``transfer``: from the local net to the global one.

        Args:
            images: (B, 3, H, W) float32, normalised; no side shorter than a local view.
            targets: (B, C) in {0, 1}, float.
            planes: (B, 1, H, W) saliency, uint8 or float, whose largest value of an image counts as 1; None
                transfers attention alone.
        """
        boxes = self._draw_boxes(images)
        views = transfer_ops.crop_views(images, boxes)
        labels = targets[boxes[:, 0]].to(images.dtype)
        local = self.local_net(views)
        target = self.target(
            local.featmap.detach().float(),
            labels.float(),
            None if planes is None else transfer_ops.crop_views(_to_one(planes), boxes),
        )
        rows, columns = local.featmap.shape[-2:]
        aligned = transfer_ops.align(self.global_net(images).featmap.float(), boxes, (rows, columns))
        return {
            "local": multilabel_soft_margin(local.logits, labels),
            "transfer": self.weight * transfer_ops.transfer_loss(aligned, target),
        }

    def target(self, featmap: Tensor, labels: Tensor, saliency: Tensor | None) -> Tensor:
        """What the global net should say of the local views.

        Args:
            featmap: (K, C + 1, h, w) of the local net.
            labels: (K, C) in {0, 1}.
            saliency: (K, 1, v, v) of the views; None where there is none.

        Returns:
            (K, C + 1, h, w) in 0..1; (K, C, h, w) of the paper's variant.
        """
        attention = transfer_ops.local_attention(featmap, labels)
        threshold = self.background_threshold
        if saliency is not None and self.transfer == "piecewise":
            return transfer_ops.piecewise_target(attention, saliency, threshold=threshold)
        attention = transfer_ops.winner_takes_all(attention)
        if saliency is None:
            return attention
        return transfer_ops.shape_target(
            attention, saliency, threshold=threshold, background=self.background_target
        )

    def localize(self, images: Tensor, extras: bool = False) -> Localization:
        found = self.global_net(images)
        named = self.global_net.intermediates(images) if extras else {}
        return Localization(found.logits.float(), found.featmap[:, :-1].float(), named)

    def official_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the global net: official checkpoints hold the local one apart, and only training needs it."""
        state = self.global_net.state_dict()
        return {name.removeprefix("trunk."): tuple(value.shape) for name, value in state.items()}

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ours = dict(self.state_dict())
        names = self.global_net.state_dict()
        return ours | {f"global_net.{name}": state[name.removeprefix("trunk.")] for name in names}

    def _draw_boxes(self, images: Tensor) -> Tensor:
        """(B * views, 5) int64 on the images' device; drawn from torch's generator, which the loop seeds."""
        count, _, height, width = images.shape
        if min(height, width) < self.view_size:
            raise UsageError(
                f"local views of {self.view_size} px do not fit images of {width}x{height} px",
                fix="set model.options.view_size to less",
            )
        seed = int(torch.randint(2**31 - 1, (1,)))
        random = np.random.RandomState(seed)
        boxes = [
            transfer_ops.local_boxes(
                (height, width), self.view_size, self.views, corners=self.corners, random=random
            )
            for _ in range(count)
        ]
        numbers = np.repeat(np.arange(count), self.views)[:, None]
        return torch.from_numpy(np.concatenate((numbers, np.concatenate(boxes)), axis=1)).to(images.device)


def _to_one(saliency: Tensor) -> Tensor:
    """Saliency (B, 1, H, W) of any scale, the largest value of each image 1."""
    values = saliency.float()
    return values / (values.amax(dim=(1, 2, 3), keepdim=True) + 1e-10)
