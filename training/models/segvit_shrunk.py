"""Shrunk SegViT: most blocks run on a quarter of the tokens, and learned queries bring the grid back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wsss_rt.errors import UsageError
from wsss_rt.training.models.attention import block_forward, block_sampled
from wsss_rt.training.models.segmenter import Grid
from wsss_rt.training.models.segvit import Decoded, SegViT, StagedHead
from wsss_rt.training.models.token_decoder import LearnedQueries, TokenDecoder, start_weights


class ATMStage(nn.Module):
    """A single attention-to-mask stage that reads its memory as it is; each layer gives a mask of its own.

    Args:
        dim, heads, layers, dropout: of the decoder.
        outputs: K.
    """

    def __init__(self, dim: int, outputs: int, *, heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.decoder_1 = TokenDecoder(dim, heads, layers=layers, dropout=dropout, split=True)
        self.q = LearnedQueries(outputs, dim)
        self.class_embed = nn.Linear(dim, outputs + 1)

    def forward(self, memory: Tensor, grid: Grid, *, every: bool = False) -> Decoded:
        """Masks of the layers, not added up: all with ``every``, else the last one's.

        Args:
            memory: (B, L, d).
            grid: its rows and columns.
            every: for losses and intermediates.
        """
        start = self.q.start(self.decoder_1.layers[0], memory.shape[0])
        outputs, similarities = self.decoder_1(start, memory)
        first = 0 if every else -1
        masks = [similarity.unflatten(2, grid) for similarity in similarities[first:]]
        found = Decoded(masks, [self.class_embed(tokens) for tokens in outputs[first:]])
        if every:
            found.trace |= {"q_out": torch.stack(outputs), "sim": torch.stack(masks)}
        return found


class ShrunkHead(StagedHead):
    """Query upsampling, then a single attention-to-mask stage.

    Learned queries, one for each token of a square image of the training size, read the taps, shallowest
    first, through decoder layers of torch's kind. (The paper speaks of two layers; its code has three for
    each tap.) Their grid is fixed, whatever the image's is.

    Args:
        embed_dim: D of the trunk; the head is half as wide, with heads of 32.
        outputs: K.
        side: rows, and columns, of the queries' grid.
        stages: number of taps.
        layers: decoder layers of each stage and of the attention-to-mask stage.
        dropout: while training.
    """

    def __init__(
        self, embed_dim: int, outputs: int, *, side: int, stages: int, layers: int, dropout: float
    ) -> None:
        super().__init__(embed_dim, stages=stages, layers=layers, dropout=dropout, split=False)
        self.side = side
        self.q = LearnedQueries(side * side, self.dim)
        self.atm = ATMStage(self.dim, outputs, heads=self.heads, layers=layers, dropout=dropout)
        start_weights(self)

    def forward(self, taps: Sequence[Tensor], grid: Grid, *, every: bool = False) -> Decoded:
        """Decode; as :meth:`ATMHead.forward`, but masks have the queries' grid."""
        queries: Any = self.q.start(self.decoder(1).layers[0], taps[0].shape[0])
        trace: dict[str, Tensor] = {}
        for stage, tap in enumerate(taps, start=1):
            memory = self.project(stage, tap)
            queries = self.decoder(stage)(queries, memory)[0][-1]
            trace |= {f"lateral_{stage}": memory, f"qu_{stage}": queries}
        found: Decoded = self.atm(queries, (self.side, self.side), every=every)
        if every:
            found.trace |= trace
        return found

    def fold(self, *, keep: bool) -> None:
        """Keep what first layers make of learned queries and class tokens as constants, or forget it."""
        for queries, first in (
            (self.q, self.decoder(1).layers[0]),
            (self.atm.q, self.atm.decoder_1.layers[0]),
        ):
            if keep:
                queries.fold(first)
            else:
                queries.unfold()


class SegViTShrunk(SegViT):
    """SegViT whose trunk continues on every other row and column of the tokens (query downsampling).

    Args:
        shrink_at: the block (from 0) whose queries are sampled; None takes the one after the first third.
        taps: None takes the last block before it and the last one.
        options: of :class:`SegViT`.
    """

    criteria = (
        "decode_head.loss_decode.criterion.empty_weight",
        "decode_head.atm.loss_decode.criterion.empty_weight",
    )

    def __init__(self, backbone: Any, *, shrink_at: int | None = None, **options: Any) -> None:
        depth = len(backbone.blocks)
        self.shrink_at = depth // 3 if shrink_at is None else shrink_at
        if not 0 < self.shrink_at < depth:
            raise UsageError(f"shrink_at {self.shrink_at} is not a block after the first of {depth}")
        super().__init__(backbone, **options)

    def features(self, tokens: Tensor, grid: Grid) -> list[Tensor]:
        found = []
        for index, block in enumerate(self.blocks[: self.taps[-1] + 1]):
            if index == self.shrink_at:
                tokens = block_sampled(block, tokens, lambda full: every_other(full, grid))
            else:
                tokens = block_forward(block, tokens)
            if index in self.taps:
                found.append(tokens)
        return found

    def _default_taps(self) -> tuple[int, ...]:
        return (self.shrink_at - 1, self.depth - 1)

    def _new_head(self, *, layers: int, dropout: float) -> Any:
        return ShrunkHead(
            self.embed_dim,
            self.outputs,
            side=self.stored_side,
            stages=len(self.taps),
            layers=layers,
            dropout=dropout,
        )

    def _named_taps(self, taps: Sequence[Tensor], grid: Grid) -> dict[str, Tensor]:
        return {f"feat_{index}": tap for index, tap in zip(self.taps, taps, strict=True)}


def every_other(tokens: Tensor, grid: Grid) -> Tensor:
    """Tokens (B, L, D) of every other row and column of their grid, beginning with the first."""
    return tokens.unflatten(1, grid)[:, ::2, ::2].flatten(1, 2)
