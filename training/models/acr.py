"""ACR: attention that is the same in an image and its view, read by gradients (arXiv 2308.04321)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wsss_rt.errors import UsageError, nearest
from wsss_rt.model_card import MapRule
from wsss_rt.training.losses import multilabel_soft_margin
from wsss_rt.training.models import tokens as token_ops
from wsss_rt.training.models.acr_extras import intermediates
from wsss_rt.training.models.attention import run_blocks
from wsss_rt.training.models.base import Localization
from wsss_rt.training.models.consistency import HeadMeans, OneView, find_view, paired_losses
from wsss_rt.training.models.fusion import AttentionSums, refine, to_grid
from wsss_rt.training.models.gradient_maps import (
    GRADIENTS,
    check_closed_form,
    class_map,
    closed_form_gradients,
    record_block,
)
from wsss_rt.training.models.position import new_positions
from wsss_rt.training.models.vit_method import ViTLocalizer

_TRUNK, _HEAD = "pretrained.model.", "cls_head."


class ACR(ViTLocalizer):
    """One class token for all classes; a class's map is the gradient of its logit on that token's attention.

    Officially on ``vit_base_r50_s16_384``, and on plain ViT-B and DeiT, at 384 px. Logits are a linear layer
    on the class token after the last block, before the final LayerNorm, which is stored and never applied.
    Maps are nonnegative and not normalised; after refinement they are a narrow range on a high pedestal,
    which half precision loses. Give sizes in training that are multiples of the patch, or a view shows other
    patches than its image.

    Args:
        backbone: timm ViT without a head.
        num_classes: C.
        img_size: side in pixels of the stored position grid.
        start_layer: the first block, from 0, whose map is summed; 9 is the code's default, the published
            script uses 10. From the last but one on, the map costs next to nothing. A backbone with fewer
            blocks gives its last.
        gradient: ``"grad"``, ``"grad_s"``, ``"cam_grad"`` or ``"cam_grad_s"``, see ``class_map``; the last is
            the code's default, the published script uses the first.
        affinity: refine the map with patch-to-patch attention summed over all layers; off in the code's
            default, on in the published script.
        alpha: weight of the consistency losses; 125 in the script for PASCAL VOC.
        view: what the second image of a pair is, see ``VIEWS``; the released code only mirrors.

    ``start_layer``, ``gradient`` and ``affinity`` only concern :meth:`localize`; set them any time.
    """

    position_bilinear = True
    map_rule = MapRule(upsample="aligned")

    def __init__(
        self,
        backbone: Any,
        *,
        num_classes: int,
        img_size: int,
        start_layer: int = 9,
        gradient: str = "cam_grad_s",
        affinity: bool = False,
        alpha: float = 100.0,
        view: str = "flip",
    ) -> None:
        super().__init__(backbone, num_classes=num_classes, img_size=img_size)
        if reason := check_closed_form(self.blocks):
            raise UsageError(
                "this backbone cannot carry acr", why=reason, fix="take a plain ViT, DeiT or R50+ViT"
            )
        self.start_layer = start_layer
        self.gradient = gradient
        self.affinity = affinity
        self.alpha = alpha
        self.view = find_view(view)
        self.cls_token = token_ops.new_tokens(1, self.embed_dim)
        self.pos_embed = new_positions(1 + self.stored_side**2, self.embed_dim)
        self.head = nn.Linear(self.embed_dim, num_classes)
        if not self._is_hybrid:
            # other backbones' checkpoints hold these too, in shapes that depend on the backbone
            unused = (f"{_TRUNK}bkg_token", f"{_TRUNK}head.", "pretrained.act_postprocess", "scratch.")
            self.official_leftovers = unused

    @property
    def start_layer(self) -> int:
        """The first block whose map :meth:`localize` sums."""
        return self._start_layer

    @start_layer.setter
    def start_layer(self, value: int) -> None:
        if value < 0:
            raise UsageError(f"start_layer is {value}, but blocks are counted from 0")
        self._start_layer = value

    @property
    def gradient(self) -> str:
        """What :meth:`localize` makes of gradient and attention."""
        return self._gradient

    @gradient.setter
    def gradient(self, value: str) -> None:
        if value not in GRADIENTS:
            raise UsageError(f"unknown gradient {value!r}", fix=nearest(value, GRADIENTS))
        self._gradient = value

    def losses(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        def run(view: Tensor) -> OneView:
            tokens, grid, _ = self._embed(view)
            means = HeadMeans()
            logits = self.head(run_blocks(self.blocks, tokens, observe=means)[:, 0])
            return {"class": multilabel_soft_margin(logits, targets)}, means.layers, grid

        return paired_losses(run, images, view=self.view, alpha=self.alpha)

    def localize(self, images: Tensor, extras: bool = False) -> Localization:
        tokens, grid, _ = self._embed(images)
        blocks = list(self.blocks)
        first = min(self.start_layer, self.depth - 1)
        sums = AttentionSums(
            classes=1, depth=self.depth, layers_fused=1, class_to_patch=False, affinity=self.affinity
        )
        tokens = run_blocks(blocks[:first], tokens, sums=sums)
        records = []
        for index in range(first, self.depth):
            records.append(record_block(blocks[index], tokens))
            tokens = records[-1].output
            if sums.wants(index):
                sums.add(index, records[-1].attention.mean(dim=1))
        gradients = closed_form_gradients(records, self.head.weight)
        parts = [
            class_map(gradient, record.attention[:, :, 0], self.gradient)
            for gradient, record in zip(gradients, records, strict=True)
        ]
        maps = to_grid(torch.stack(parts).sum(dim=0), grid).float()
        if sums.affinity is not None:
            maps = refine(sums.affinity, maps)
        named = intermediates(self, images) if extras else {}
        return Localization(self.head(tokens[:, 0]).float(), maps, named)

    def official_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {_official(name): shape for name, shape in super().official_shapes().items()}
        if self._is_hybrid:
            dim = self.embed_dim
            shapes[f"{_TRUNK}bkg_token"] = (1, 1, dim)
            shapes[f"{_TRUNK}head.weight"] = (1000, dim)
            shapes[f"{_TRUNK}head.bias"] = (1000,)
            # of a decoder that is built and never run
            for number, width in enumerate((256, 512, dim, dim), start=1):
                shapes[f"scratch.layer{number}_rn.weight"] = (256, width, 3, 3)
        return shapes

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: state[_official(name)] for name in self.state_dict()}

    @property
    def _is_hybrid(self) -> bool:
        return hasattr(self.patch_embed, "backbone")


def _official(name: str) -> str:
    """The official key of one of ours."""
    return _HEAD + name.removeprefix("head.") if name.startswith("head.") else _TRUNK + name
