"""Decoder layers in which learned queries read an image's tokens: post-norm, ReLU, without positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Settled:
    """What the first layer makes of learned queries before it has seen an image; for export a constant.

    Attributes:
        queries: (1, Q, d) after self-attention and its norm.
        asking: (1, Q, d) projected for cross-attention.
    """

    queries: Tensor
    asking: Tensor


class PackedAttention(nn.Module):
    """Multi-head attention with one matrix for queries, keys and values, under torch's names.

    ``fused`` as in :func:`attend`.
    """

    def __init__(self, dim: int, heads: int, dropout: float, *, fused: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.fused = heads, dropout, fused
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * dim, dim)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def ask(self, queries: Tensor) -> Tensor:
        """Projected queries, (B, Q, d) to (B, Q, d)."""
        dim = queries.shape[-1]
        return functional.linear(queries, self.in_proj_weight[:dim], self.in_proj_bias[:dim])

    def forward(self, asking: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See :func:`attend`; ``asking`` (B, Q, d) comes from :meth:`ask`."""
        dim = asking.shape[-1]
        pair = functional.linear(memory, self.in_proj_weight[dim:], self.in_proj_bias[dim:])
        key, value = pair.chunk(2, dim=-1)
        dropout = self.dropout if self.training else 0.0
        mixed, raw = attend(asking, key, value, heads=self.heads, dropout=dropout, fused=self.fused)
        return self.out_proj(mixed), raw


class SplitAttention(nn.Module):
    """The same with a matrix each, under the names of the attention-to-mask module."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def ask(self, queries: Tensor) -> Tensor:
        """Projected queries, (B, Q, d) to (B, Q, d)."""
        projected: Tensor = self.q(queries)
        return projected

    def forward(self, asking: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See :func:`attend`; ``asking`` (B, Q, d) comes from :meth:`ask`."""
        dropout = self.dropout if self.training else 0.0
        key, value = self.k(memory), self.v(memory)
        mixed, raw = attend(asking, key, value, heads=self.heads, dropout=dropout, fused=False)
        return self.proj(mixed), raw


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, heads: int, dropout: float, fused: bool
) -> tuple[Tensor, Tensor]:
    """Multi-head attention, and what it compares.

    Args:
        query: (B, Q, d).
        key, value: (B, L, d).
        heads: their number.
        dropout: of the attention.
        fused: take a kernel that never forms the matrix. Where a few class tokens ask, the matrix is small,
            and the official code forms it; fused, pixels moved whose best two classes are 1e-5 apart.

    Returns:
        (B, Q, d), and the scaled products before softmax as their mean over heads (B, Q, L), an empty tensor
        where they are fused.
    """
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    if fused:
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return mixed.transpose(1, 2).flatten(2), query.new_empty(0)
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    mixed = functional.dropout(torch.softmax(scores, dim=-1), dropout, dropout > 0) @ v
    return mixed.transpose(1, 2).flatten(2), scores.mean(dim=1)


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, MLP; a norm after each (SegViT's code; torch's decoder layer).

    Args:
        dim: d.
        heads: of both attentions.
        dropout: everywhere, while training.
        split: cross-attention with a matrix each and a similarity, as the attention-to-mask module has it;
            torch's, fused, otherwise.
    """

    def __init__(self, dim: int, heads: int, *, dropout: float, split: bool) -> None:
        super().__init__()
        self.self_attn = PackedAttention(dim, heads, dropout, fused=not split)
        self.multihead_attn: SplitAttention | PackedAttention = (
            SplitAttention(dim, heads, dropout) if split else PackedAttention(dim, heads, dropout, fused=True)
        )
        self.linear1, self.linear2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.drop = nn.Dropout(dropout)

    def settle(self, queries: Tensor) -> Settled:
        """The part before the memory, of queries (B, Q, d)."""
        mixed, _ = self.self_attn(self.self_attn.ask(queries), queries)
        settled = self.norm1(queries + self.drop(mixed))
        return Settled(settled, self.multihead_attn.ask(settled))

    def read(self, settled: Settled, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The part that reads the memory (B, L, d); returns queries (B, Q, d) and see :func:`attend`."""
        mixed, raw = self.multihead_attn(settled.asking, memory)
        queries = self.norm2(settled.queries + self.drop(mixed))
        hidden = self.drop(functional.relu(self.linear1(queries)))
        return self.norm3(queries + self.drop(self.linear2(hidden))), raw


class TokenDecoder(nn.Module):
    """Decoder layers one after the other, without a norm at the end.

    Args:
        dim, heads, dropout, split: of each :class:`DecoderLayer`.
        layers: their number.
    """

    def __init__(self, dim: int, heads: int, *, layers: int, dropout: float, split: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(dim, heads, dropout=dropout, split=split) for _ in range(layers)
        )

    def forward(self, start: Tensor | Settled, memory: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Run all layers.

        Args:
            start: queries (B, Q, d), or what the first layer has made of them already.
            memory: (B, L, d).

        Returns:
            Queries (B, Q, d) after every layer, and its similarity, see :func:`attend`.
        """
        outputs: list[Tensor] = []
        similarities: list[Tensor] = []
        settled = start if isinstance(start, Settled) else None
        queries = start if isinstance(start, Tensor) else start.queries
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            queries, raw = layer.read(settled or layer.settle(queries), memory)
            settled = None
            outputs.append(queries)
            similarities.append(raw)
        return outputs, similarities


class LearnedQueries(nn.Embedding):
    """Learned queries (Q, d); what the first layer makes of them is the same for every image.

    Attributes:
        folded: that, while it is kept as a constant.
    """

    folded: Settled | None = None

    def start(self, first: nn.Module, batch: int) -> Tensor | Settled:
        """What the first decoder begins with, for a batch of images.

        Args:
            first: its first layer.
            batch: B; while training every image has its own dropout, otherwise one computation serves all.
        """
        assert isinstance(first, DecoderLayer)
        if self.training:
            return self.weight.expand(batch, -1, -1)
        settled = self.folded or first.settle(self.weight[None])
        return Settled(settled.queries.expand(batch, -1, -1), settled.asking.expand(batch, -1, -1))

    @torch.no_grad()
    def fold(self, first: nn.Module) -> None:
        """Keep the constant until :meth:`unfold`; in eval mode."""
        assert isinstance(first, DecoderLayer)
        self.folded = first.settle(self.weight[None])

    def unfold(self) -> None:
        """Forget it: weights may change again."""
        self.folded = None


def start_weights(module: nn.Module) -> None:
    """Linear layers truncated normal with deviation 0.02 and zero biases, as the official head begins."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
