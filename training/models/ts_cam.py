"""TS-CAM: one class token says where an object is, patch tokens say which (Gao et al., ICCV 2021)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from wsss_rt.training.losses import check_tag_loss, tag_loss
from wsss_rt.training.models import tokens as token_ops
from wsss_rt.training.models.attention import Observer, run_blocks
from wsss_rt.training.models.base import Localization
from wsss_rt.training.models.consistency import check_consistency, mirrored_losses
from wsss_rt.training.models.extras import LayerTrace, without_batch_of_one
from wsss_rt.training.models.fusion import AttentionSums, check_layers_fused, to_grid
from wsss_rt.training.models.patch_head import average_pool, new_patch_head, semantic_map
from wsss_rt.training.models.position import new_positions
from wsss_rt.training.models.vit_method import ViTLocalizer


class TSCAM(ViTLocalizer):
    """A single class token, whose attention couples with a semantic map of the patch tokens.

    The attention is summed over layers and the same for all classes; the semantic map is not rectified, so
    maps are of either sign. The final LayerNorm is applied before the patch head, and nothing refines the
    map. Positions are resized plainly: the original only ever sees 224 px squares.

    Args:
        backbone: timm ViT without a head.
        num_classes: C.
        img_size: side in pixels of the stored position grid.
        layers_fused: the last layers whose attention is summed; the original's 12 are all of DeiT's.
            It only concerns :meth:`localize`; set it any time.
        loss: ``"soft_margin"``, the multi-label loss of MCTformer's comparison, after which sigmoids of
            scores are probabilities; or ``"cross_entropy"`` of a softmax, the original's, for one tag an
            image (several share it equally). Either meets the average of the semantic map.
        smoothing: label smoothing of the cross entropy, 0..1.
        consistency: ``"acr"`` trains on the image and its mirror image, and their attention shall agree (see
            ``consistency.py``); None, officially.
        alpha: weight of that agreement.
    """

    def __init__(
        self,
        backbone: Any,
        *,
        num_classes: int,
        img_size: int,
        layers_fused: int = 12,
        loss: str = "soft_margin",
        smoothing: float = 0.0,
        consistency: str | None = None,
        alpha: float = 100.0,
    ) -> None:
        super().__init__(backbone, num_classes=num_classes, img_size=img_size)
        check_tag_loss(loss, smoothing=smoothing)
        self.loss, self.smoothing = loss, smoothing
        self.consistency, self.alpha = check_consistency(consistency), alpha
        self.layers_fused = check_layers_fused(layers_fused)
        self.cls_token = token_ops.new_tokens(1, self.embed_dim)
        self.pos_embed = new_positions(1 + self.stored_side**2, self.embed_dim)
        self.head: nn.Module = new_patch_head(self.embed_dim, num_classes)

    def losses(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        def of_view(view: Tensor, observe: Observer | None) -> tuple[dict[str, Tensor], tuple[int, int]]:
            sequence, grid, _ = self._embed(view)
            semantic = self._semantic_map(run_blocks(self.blocks, sequence, observe=observe), grid)
            logits = average_pool(semantic)
            return {"patch": tag_loss(self.loss, logits, targets, smoothing=self.smoothing)}, grid

        return mirrored_losses(of_view, images, consistency=self.consistency, alpha=self.alpha)

    def localize(self, images: Tensor, extras: bool = False) -> Localization:
        embedded, grid, _ = self._embed(images)
        sums = AttentionSums(
            classes=1,
            depth=self.depth,
            layers_fused=self.layers_fused,
            class_to_patch=True,
            affinity=False,
        )
        trace = LayerTrace(1) if extras else None
        sequence = run_blocks(self.blocks, embedded, sums=sums, observe=trace)
        semantic = self._semantic_map(sequence, grid)
        assert sums.class_to_patch is not None
        maps = to_grid(sums.class_to_patch, grid) * semantic
        scores = average_pool(semantic)
        named: dict[str, Tensor] = {}
        if trace is not None:
            named = {
                "logits": scores,
                "semantic_map": semantic,
                "cls_attn_layers": trace.class_to_patch(grid)[:, :, 0],
                "cams": maps,
            }
        return Localization(scores, maps, without_batch_of_one(named))

    def _semantic_map(self, sequence: Tensor, grid: tuple[int, int]) -> Tensor:
        return semantic_map(self.head, token_ops.split(self.norm(sequence), 1)[1], grid)
