"""MCTformer V1 and V2: one class token per class, whose attention to the patches is its map (CVPR 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wsss_rt.errors import UsageError, nearest
from wsss_rt.training.losses import multilabel_soft_margin
from wsss_rt.training.models import tokens as token_ops
from wsss_rt.training.models.attention import Observer, run_blocks
from wsss_rt.training.models.base import Localization, options_set
from wsss_rt.training.models.consistency import check_consistency, mirrored_losses
from wsss_rt.training.models.extras import LayerTrace, without_batch_of_one
from wsss_rt.training.models.fusion import (
    AFFINITY_SOURCES,
    AttentionSums,
    check_layers_fused,
    refine,
    to_grid,
    token_affinity,
)
from wsss_rt.training.models.patch_head import average_pool, new_patch_head, semantic_map
from wsss_rt.training.models.position import new_positions
from wsss_rt.training.models.vit_method import ViTLocalizer

#: Options that choose between maps of one forward pass.
_OF_THE_MAP = {"attention_type", "affinity", "affinity_source"}


@dataclass(frozen=True)
class _Pass:
    """What a forward pass gives for maps: ``positions`` (1, C + N, D), ``sequence`` (B, C + N, D) after the
    last block, ``attention`` and ``semantic`` (B, C, rows, columns), ``sums`` of the attention."""

    grid: tuple[int, int]
    positions: Tensor
    sequence: Tensor
    attention: Tensor | None
    semantic: Tensor | None
    sums: AttentionSums


class MCTformerV1(ViTLocalizer):
    """Class tokens alone: scores are their channel means, maps their attention to the patches.

    The final LayerNorm and ``head`` of the backbone are in the official state dict, and are never applied.

    Args:
        backbone: timm ViT without a head.
        num_classes: C.
        img_size: side in pixels of the stored position grid.
        layers_fused: K, the last layers whose class-to-patch attention is summed. The code's default is 12;
            the paper and the official scripts use 3.
        attention_type: ``"attention"``, the only map that V1 has.
        affinity: refine the map with the affinity of patches.
        affinity_source: ``"attention"``, officially: patch-to-patch attention summed over all layers; or
            ``"tokens"``, see ``token_affinity``, which is better where attention has seen little training.
        consistency: ``"acr"`` trains on the image and its mirror image, and their attention shall agree (see
            ``consistency.py``); None, officially.
        alpha: weight of that agreement.

    ``layers_fused``, ``attention_type``, ``affinity`` and ``affinity_source`` only concern :meth:`localize`;
    set them any time.
    """

    attention_types: tuple[str, ...] = ("attention",)
    position_offset = 0.1

    def __init__(
        self,
        backbone: Any,
        *,
        num_classes: int,
        img_size: int,
        layers_fused: int = 12,
        attention_type: str = "attention",
        affinity: bool = True,
        affinity_source: str = "attention",
        consistency: str | None = None,
        alpha: float = 100.0,
    ) -> None:
        super().__init__(backbone, num_classes=num_classes, img_size=img_size)
        self.consistency = check_consistency(consistency)
        self.alpha = alpha
        self.layers_fused = check_layers_fused(layers_fused)
        self.attention_type = attention_type
        self.affinity = affinity
        self.affinity_source = affinity_source
        self.cls_token = token_ops.new_tokens(num_classes, self.embed_dim)
        self._add_positions()
        self.head: nn.Module = self._new_head()

    @property
    def attention_type(self) -> str:
        """Which map :meth:`localize` gives."""
        return self._attention_type

    @attention_type.setter
    def attention_type(self, value: str) -> None:
        # the official code takes any other string for "attention only", without a word
        if value not in self.attention_types:
            raise UsageError(f"unknown attention_type {value!r}", fix=nearest(value, self.attention_types))
        self._attention_type = value

    @property
    def affinity_source(self) -> str:
        """Where the affinity comes from that :meth:`localize` refines with."""
        return self._affinity_source

    @affinity_source.setter
    def affinity_source(self, value: str) -> None:
        if value not in AFFINITY_SOURCES:
            raise UsageError(f"unknown affinity_source {value!r}", fix=nearest(value, AFFINITY_SOURCES))
        self._affinity_source = value

    def losses(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        def of_view(view: Tensor, observe: Observer | None) -> tuple[dict[str, Tensor], tuple[int, int]]:
            return self._view_losses(view, targets, observe)

        return mirrored_losses(
            of_view,
            images,
            consistency=self.consistency,
            alpha=self.alpha,
            class_tokens=self.num_classes,
        )

    def localize(self, images: Tensor, extras: bool = False) -> Localization:
        trace = LayerTrace(self.num_classes) if extras else None
        found = self._run(
            images,
            class_to_patch=self.attention_type != "patchcam",
            affinity=self.affinity and self.affinity_source == "attention",
            trace=trace,
        )
        named: dict[str, Tensor] = {}
        if trace is not None:
            named = self._extras(trace, found.sequence, found.semantic, found.grid)
            named["patch_embed_first8ch"] = self.patch_tokens(images)[0][..., :8]
            used = self._used_positions(found.positions)
            named["pos_embed_used_first8ch"] = used[..., :8].expand(images.shape[0], -1, -1)
            named = without_batch_of_one(named)
        return Localization(self._scores(found.sequence, found.semantic), self._map(found), named)

    def localize_each(self, images: Tensor, variants: Sequence[Mapping[str, Any]]) -> list[Localization]:
        if any(not options.keys() <= _OF_THE_MAP for options in variants):
            return super().localize_each(images, variants)
        found = self._run(images, class_to_patch=True, affinity=True, uses=len(variants))
        scores = self._scores(found.sequence, found.semantic)
        maps = []
        for options in variants:
            with options_set(self, options):
                maps.append(Localization(scores, self._map(found)))
        return maps

    def _run(
        self,
        images: Tensor,
        *,
        class_to_patch: bool,
        affinity: bool,
        uses: int = 1,
        trace: LayerTrace | None = None,
    ) -> _Pass:
        embedded, grid, positions = self._embed(images)
        sums = AttentionSums(
            classes=self.num_classes,
            depth=self.depth,
            layers_fused=self.layers_fused,
            class_to_patch=class_to_patch,
            affinity=affinity,
            uses=uses,
        )
        sequence = run_blocks(self.blocks, embedded, sums=sums, observe=trace)
        attention = None
        if sums.class_to_patch is not None:
            attention = to_grid(self._over_layers(sums.class_to_patch, self.layers_fused), grid)
        semantic = self._semantic_map(sequence, grid)
        return _Pass(grid, positions, sequence, attention, semantic, sums)

    def _map(self, found: _Pass) -> Tensor:
        maps = self._fuse(found.attention, found.semantic)
        if self.affinity and self.affinity_source == "tokens":
            maps = refine(token_affinity(token_ops.split(found.sequence, self.num_classes)[1]), maps)
        elif self.affinity:
            maps = found.sums.refine(maps)
        return maps.float()

    def _add_positions(self) -> None:
        self.pos_embed = new_positions(self.num_classes + self.stored_side**2, self.embed_dim)

    def _used_positions(self, positions: Tensor) -> Tensor:
        """Of the positions (1, C + N, D), those that extras name."""
        return positions

    def _new_head(self) -> nn.Module:
        return nn.Linear(self.embed_dim, self.num_classes)

    def _view_losses(
        self, images: Tensor, targets: Tensor, observe: Observer | None = None
    ) -> tuple[dict[str, Tensor], tuple[int, int]]:
        """Losses of images as they come, and their grid; ``observe`` reads the attention."""
        sequence, grid, _ = self._embed(images)
        return self._losses(run_blocks(self.blocks, sequence, observe=observe), grid, targets), grid

    def _losses(self, sequence: Tensor, grid: tuple[int, int], targets: Tensor) -> dict[str, Tensor]:
        return {"class": multilabel_soft_margin(self._class_logits(sequence), targets)}

    def _class_logits(self, sequence: Tensor) -> Tensor:
        return token_ops.channel_mean(token_ops.split(sequence, self.num_classes)[0])

    def _scores(self, sequence: Tensor, semantic: Tensor | None) -> Tensor:
        return self._class_logits(sequence)

    def _semantic_map(self, sequence: Tensor, grid: tuple[int, int]) -> Tensor | None:
        """Class evidence per patch (B, C, rows, columns) before ReLU, where the method has such a head."""
        return None

    def _over_layers(self, summed: Tensor, layers: int) -> Tensor:
        """What is fused of attention that was summed over the last ``layers``: here the sum itself."""
        return summed

    def _fuse(self, attention: Tensor | None, semantic: Tensor | None) -> Tensor:
        """The map before refinement."""
        assert attention is not None
        return attention

    def _extras(
        self, trace: LayerTrace, sequence: Tensor, semantic: Tensor | None, grid: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Intermediates with their batch dimension, whatever the options are."""
        classes, patches = token_ops.split(sequence, self.num_classes)
        affinity = trace.affinity_sum
        named = {
            "logits_cls": self._class_logits(sequence),
            "cls_tokens_final": classes,
            "patch_tokens_final_first16": patches[:, :16],
            **trace.named(grid),
        }
        for layers in (self.depth, 3):
            attention = self._over_layers(trace.last_layers(layers), layers)
            named[f"mct_attn_K{layers}"] = to_grid(attention, grid)
            named[f"refined_K{layers}"] = refine(affinity, named[f"mct_attn_K{layers}"])
        return named


class MCTformerV2(MCTformerV1):
    """V1 with a patch head: a 3x3 convolution over the final patch tokens gives PatchCAM, and a second score.

    Args:
        attention_type: ``"fused"`` (attention times PatchCAM), ``"patchcam"`` or ``"attention"``.
        others: as in :class:`MCTformerV1`.

    ``Localization.scores`` is the mean of class-token and patch logits.
    """

    attention_types = ("fused", "patchcam", "attention")

    def __init__(self, backbone: Any, *, attention_type: str = "fused", **options: Any) -> None:
        super().__init__(backbone, attention_type=attention_type, **options)

    def _new_head(self) -> nn.Module:
        return new_patch_head(self.embed_dim, self.num_classes)

    def _losses(self, sequence: Tensor, grid: tuple[int, int], targets: Tensor) -> dict[str, Tensor]:
        patch_logits = self._pool(self._semantic_map(sequence, grid))
        return {
            **super()._losses(sequence, grid, targets),
            "patch": multilabel_soft_margin(patch_logits, targets),
        }

    def _semantic_map(self, sequence: Tensor, grid: tuple[int, int]) -> Tensor:
        return semantic_map(self.head, token_ops.split(sequence, self.num_classes)[1], grid)

    def _pool(self, semantic: Tensor) -> Tensor:
        """Patch logits (B, C): the average over all patches, before ReLU."""
        return average_pool(semantic)

    def _scores(self, sequence: Tensor, semantic: Tensor | None) -> Tensor:
        assert semantic is not None
        return (self._class_logits(sequence) + self._pool(semantic)) / 2

    def _fuse(self, attention: Tensor | None, semantic: Tensor | None) -> Tensor:
        assert semantic is not None
        if self.attention_type == "patchcam":
            return torch.relu(semantic)
        assert attention is not None
        if self.attention_type == "attention":
            return attention
        return self._product(attention, torch.relu(semantic))

    def _product(self, attention: Tensor, patchcam: Tensor) -> Tensor:
        return attention * patchcam

    def _extras(
        self, trace: LayerTrace, sequence: Tensor, semantic: Tensor | None, grid: tuple[int, int]
    ) -> dict[str, Tensor]:
        assert semantic is not None
        patchcam = torch.relu(semantic)
        named = super()._extras(trace, sequence, semantic, grid)
        named["logits_patch"] = self._pool(semantic)
        named["patch_head_raw"] = semantic
        named["patchcam"] = patchcam
        named["refined_patchcam"] = refine(trace.affinity_sum, patchcam)
        for layers in (self.depth, 3):
            fused = self._product(named[f"mct_attn_K{layers}"], patchcam)
            named[f"fused_K{layers}"] = fused
            named[f"refined_K{layers}"] = refine(trace.affinity_sum, fused)
        return named
