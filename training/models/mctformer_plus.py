"""MCTformer+: V2 with class tokens kept apart and patch scores that weigh by rank (Xu et al., TPAMI 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wsss_rt.errors import UsageError
from wsss_rt.training.losses import class_token_contrast
from wsss_rt.training.models import tokens as token_ops
from wsss_rt.training.models.attention import Observer, run_blocks
from wsss_rt.training.models.extras import LayerTrace
from wsss_rt.training.models.mctformer import MCTformerV2
from wsss_rt.training.models.patch_head import ranked_pool
from wsss_rt.training.models.position import new_positions


class MCTformerPlus(MCTformerV2):
    """MCTformer V2, and what differs from it.

    - A third loss, ``contrast``: class tokens of each layer shall differ from each other.
    - Patch scores pool by rank instead of averaging.
    - Attention is the mean over the last layers, not their sum, and the fused map is the square root of
      attention times PatchCAM.
    - Positions of class tokens and of patches are two parameters, and resized without V1's and V2's offset.
      The official training stores those of 448 px: give ``img_size=448`` for its checkpoints.

    Args:
        loss_weight: factor of the contrast loss.
        num_cct: the last layers whose class tokens are contrasted.
        pool_decay: weight of each patch relative to the one that ranks before it, in (0, 1].
        others: as in :class:`MCTformerV2`; the official scripts fuse all 12 layers. ``"attention"`` is what
            the official code calls ``mct``.
    """

    position_offset = 0.0

    def __init__(
        self,
        backbone: Any,
        *,
        loss_weight: float = 1.0,
        num_cct: int = 12,
        pool_decay: float = 0.996,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        if loss_weight < 0:
            raise UsageError(f"loss_weight is {loss_weight}, but a loss cannot weigh less than 0")
        if num_cct < 1:
            raise UsageError(f"num_cct is {num_cct}, but at least one layer must be contrasted")
        if not 0 < pool_decay <= 1:
            raise UsageError(f"pool_decay is {pool_decay}, but must be above 0 and at most 1")
        self.loss_weight = loss_weight
        self.num_cct = num_cct
        self.pool_decay = pool_decay

    def stored_positions(self) -> tuple[Tensor, Tensor]:
        return self.pos_embed_cls, self.pos_embed_pat

    def _view_losses(
        self, images: Tensor, targets: Tensor, observe: Observer | None = None
    ) -> tuple[dict[str, Tensor], tuple[int, int]]:
        sequence, grid, _ = self._embed(images)
        class_tokens = []
        for block in self.blocks:
            sequence = run_blocks((block,), sequence, observe=observe)
            class_tokens.append(token_ops.split(sequence, self.num_classes)[0])
        contrast = class_token_contrast(torch.stack(class_tokens[-self.num_cct :]), targets)
        losses = {**self._losses(sequence, grid, targets), "contrast": self.loss_weight * contrast}
        return losses, grid

    def official_shapes(self) -> dict[str, tuple[int, ...]]:
        # the official class inherits the position table of its backbone, saves it, and never reads it
        unused = (1, 1 + int(self.patch_embed.num_patches), self.embed_dim)
        return {**super().official_shapes(), "pos_embed": unused}

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: value for key, value in state.items() if key != "pos_embed"}

    def _add_positions(self) -> None:
        # weight decay touches both, unlike V1's and V2's table: the official exemption goes by that name
        self.pos_embed_cls = new_positions(self.num_classes, self.embed_dim)
        self.pos_embed_pat = new_positions(self.stored_side**2, self.embed_dim)

    def _used_positions(self, positions: Tensor) -> Tensor:
        return token_ops.split(positions, self.num_classes)[1]

    def _over_layers(self, summed: Tensor, layers: int) -> Tensor:
        return summed / min(layers, self.depth)

    def _product(self, attention: Tensor, patchcam: Tensor) -> Tensor:
        return torch.sqrt(attention * patchcam)

    def _pool(self, semantic: Tensor) -> Tensor:
        """Patch logits (B, C), pooled by rank."""
        return ranked_pool(semantic, self.pool_decay)

    def _extras(
        self, trace: LayerTrace, sequence: Tensor, semantic: Tensor | None, grid: tuple[int, int]
    ) -> dict[str, Tensor]:
        return {
            **super()._extras(trace, sequence, semantic, grid),
            "logits_mean_returned_with_att": self._scores(sequence, semantic),
            "cls_tokens_all_layers_first8ch": trace.class_tokens()[..., :8],
        }
