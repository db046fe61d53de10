"""SegViT: class tokens whose attention to the image is the mask (Zhang et al., NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss_rt.training.mask_losses import attention_to_mask_losses
from wsss_rt.training.models.segmenter import Grid, Segmenter, classes_of, presence
from wsss_rt.training.models.token_decoder import LearnedQueries, TokenDecoder, start_weights

_HEAD_DIM = 32


@dataclass
class Decoded:
    """What the decoder says, a list entry per output that learns; the last one is the prediction.

    Attributes:
        masks: (B, K, h, w) logits.
        class_logits: (B, K, K + 1); the last class is no-object.
        trace: named intermediates.
    """

    masks: list[Tensor]
    class_logits: list[Tensor]
    trace: dict[str, Tensor] = field(default_factory=dict)


class StagedHead(nn.Module):
    """A decoder for each tap, half as wide as the trunk; it reads the tap through a linear layer and a norm.

    Args:
        embed_dim: D of the trunk; the width d is half of it, in heads of 32.
        stages: number of taps.
        layers: decoder layers of each stage.
        dropout: while training.
        split: kind of decoder, see ``DecoderLayer``.
    """

    def __init__(self, embed_dim: int, *, stages: int, layers: int, dropout: float, split: bool) -> None:
        super().__init__()
        self.dim = embed_dim // 2
        self.heads = max(1, self.dim // _HEAD_DIM)
        self.stages = stages
        for stage in range(1, stages + 1):
            self.add_module(f"input_proj_{stage}", nn.Linear(embed_dim, self.dim))
            self.add_module(f"proj_norm_{stage}", nn.LayerNorm(self.dim))
            decoder = TokenDecoder(self.dim, self.heads, layers=layers, dropout=dropout, split=split)
            self.add_module(f"decoder_{stage}", decoder)

    def project(self, stage: int, tap: Tensor) -> Tensor:
        """Memory (B, L, d) of a stage (from 1) from its tap (B, L, D)."""
        projected = self.get_submodule(f"input_proj_{stage}")(tap)
        memory: Tensor = self.get_submodule(f"proj_norm_{stage}")(projected)
        return memory

    def decoder(self, stage: int) -> TokenDecoder:
        """Of a stage, from 1."""
        decoder = self.get_submodule(f"decoder_{stage}")
        assert isinstance(decoder, TokenDecoder)
        return decoder


class ATMHead(StagedHead):
    """Attention-to-mask decoder: one stage per tap, deepest first, masks added up as logits.

    Each stage reads its own tap with class tokens that come from the stage before. The mask of a stage is the
    similarity of its last layer: the mean over heads of the scaled products before softmax. (The paper has a
    single cross-attention per stage; its code, followed here, has three whole decoder layers.)

    Args:
        embed_dim: D of the trunk; the decoder is half as wide, with heads of 32.
        outputs: K.
        stages: number of taps.
        layers: decoder layers of each stage.
        dropout: while training.
    """

    def __init__(self, embed_dim: int, outputs: int, *, stages: int, layers: int, dropout: float) -> None:
        super().__init__(embed_dim, stages=stages, layers=layers, dropout=dropout, split=True)
        self.q = LearnedQueries(outputs, self.dim)
        self.class_embed = nn.Linear(self.dim, outputs + 1)
        start_weights(self)

    def forward(self, taps: Sequence[Tensor], grid: Grid, *, every: bool = False) -> Decoded:
        """Decode.

        Args:
            taps: (B, L, D) each, shallowest first.
            grid: rows and columns of the tokens.
            every: class logits of every stage and named intermediates; of the last alone otherwise.
        """
        found = Decoded([], [])
        tokens: Any = self.q.start(self.decoder(1).layers[0], taps[0].shape[0])
        total: Tensor | None = None
        kept: dict[str, list[Tensor]] = {"q_out": [], "sim": []}
        for stage, tap in enumerate(reversed(taps), start=1):
            memory = self.project(stage, tap)
            outputs, similarities = self.decoder(stage)(tokens, memory)
            tokens = outputs[-1]
            similarity = similarities[-1].unflatten(2, grid)
            total = similarity if total is None else total + similarity
            found.masks.append(total)
            if every:
                kept["q_out"].append(tokens)
                kept["sim"].append(similarity)
                found.trace[f"lateral_{stage}"] = memory
            if every or stage == self.stages:
                found.class_logits.append(self.class_embed(tokens))
        found.trace |= {name: torch.stack(values) for name, values in kept.items() if values}
        return found

    def fold(self, *, keep: bool) -> None:
        """Keep what the first layer makes of the class tokens as a constant, or forget it."""
        if keep:
            self.q.fold(self.decoder(1).layers[0])
        else:
            self.q.unfold()


class SegViT(Segmenter):
    """SegViT on a plain ViT.

    Args:
        decoder_layers: of each stage.
        dropout: of the decoder, while training.
        options: of :class:`Segmenter`.
    """

    # the official criterion keeps its class weights as a buffer; ours are written where they are used
    criteria: tuple[str, ...] = ("decode_head.loss_decode.criterion.empty_weight",)

    def __init__(
        self, backbone: Any, *, decoder_layers: int = 3, dropout: float = 0.1, **options: Any
    ) -> None:
        super().__init__(backbone, **options)
        self.decode_head = self._new_head(layers=decoder_layers, dropout=dropout)

    def losses(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        decoded = self.decode(images, every=True)
        size = (targets.shape[-2], targets.shape[-1])
        return attention_to_mask_losses(
            decoded.masks, decoded.class_logits, targets, grow=lambda masks: self.grow(masks, size)
        )

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        decoded = self.decode(images)
        scores = presence(decoded.class_logits[-1])[:, int(self.background) :]
        return _widened(scores), self.combine(
            decoded.masks[-1], decoded.class_logits[-1], (images.shape[-2], images.shape[-1])
        )

    def decode(self, images: Tensor, *, every: bool = False) -> Decoded:
        """The decoder's masks and classes; ``every`` as in :meth:`ATMHead.forward`."""
        tokens, grid = self.embed(images)
        taps = self.features(tokens, grid)
        decoded: Decoded = self.decode_head(taps, grid, every=every)
        if every:
            decoded.trace["embed"] = tokens
            decoded.trace |= self._named_taps(taps, grid)
        return decoded

    def combine(self, masks: Tensor, class_logits: Tensor, size: Grid) -> Tensor:
        """Class scores (B, K, H, W) of an image of ``size``, see :func:`classes_of`.

        Args:
            masks: (B, K, h, w) logits.
            class_logits: (B, K, K + 1).
            size: H and W.
        """
        masks, class_logits = _widened(masks), _widened(class_logits)
        probabilities = torch.softmax(class_logits, dim=-1)[..., :-1]
        if self.masks_at == "image":
            return classes_of(probabilities, torch.sigmoid(self.grow(masks, size)))
        return resize(classes_of(probabilities, torch.sigmoid(self._grow_square(masks))), size)

    @torch.no_grad()
    def intermediates(self, images: Tensor) -> dict[str, Tensor]:
        """As the goldens name them: outputs first where there are several, maps and predictions in full.

        ``embed`` has no row for the official class token, which is dropped before the first block.
        """
        size = (images.shape[-2], images.shape[-1])
        decoded = self.decode(images, every=True)
        pred = self.combine(decoded.masks[-1], decoded.class_logits[-1], size)
        return {
            **decoded.trace,
            "masks": torch.stack(decoded.masks),
            "cls_logits": torch.stack(decoded.class_logits),
            "mask_up": self._grow_square(decoded.masks[-1]),
            "pred": pred,
            "label": pred.argmax(dim=1),
        }

    @contextmanager
    def constants_folded(self) -> Iterator[None]:
        self.decode_head.fold(keep=True)
        try:
            yield
        finally:
            self.decode_head.fold(keep=False)

    def official_shapes(self) -> dict[str, tuple[int, ...]]:
        return super().official_shapes() | dict.fromkeys(self.criteria, (self.outputs + 1,))

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return super().from_official({key: state[key] for key in state if key not in self.criteria})

    def _new_head(self, *, layers: int, dropout: float) -> Any:
        return ATMHead(self.embed_dim, self.outputs, stages=len(self.taps), layers=layers, dropout=dropout)

    def _named_taps(self, taps: Sequence[Tensor], grid: Grid) -> dict[str, Tensor]:
        return {
            f"feat_{index}": tap.transpose(1, 2).unflatten(2, grid)
            for index, tap in zip(self.taps, taps, strict=True)
        }

    def _grow_square(self, masks: Tensor) -> Tensor:
        return resize(masks, (self.img_size, self.img_size))


def _widened(values: Tensor) -> Tensor:
    """Half precision as float32; anything wider stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def resize(maps: Tensor, size: Grid) -> Tensor:
    """Bilinear, half-pixel centres; equal sizes come back equal."""
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
