"""Triton kernel: attention whose values are the maps, shared by all heads, and nothing for class tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsss_rt.kernels._launch import LOG2_E, dense_rows, dot_precision, tile, widen, wrap_triton


@triton.jit
def _propagate(
    q, k, maps, out,
    q_batch, q_head, q_row, k_batch, k_head, k_row,
    heads, tokens, classes, channels, factor, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    PRECISION: tl.constexpr, WEIGHTS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Adds one layer's share to a tile of ``out``: some patches, some channels, all heads."""
    program = tl.program_id(0).to(tl.int64)
    patches = tokens - classes
    down = tl.cdiv(patches, ROWS)
    across = tl.cdiv(channels, CHANNELS)
    batch, place = program // (down * across), program % (down * across)
    rows = (place % down) * ROWS + tl.arange(0, ROWS)
    of_maps = (place // down) * CHANNELS + tl.arange(0, CHANNELS)
    dims = tl.arange(0, BLOCK_D)
    row_mask = (rows < patches)[:, None] & (dims < D)[None, :]
    q += batch * q_batch + (classes + rows)[:, None] * q_row + dims[None, :]
    k += batch * k_batch
    maps += (batch * channels + of_maps)[None, :] * patches
    gathered = tl.zeros((ROWS, CHANNELS), tl.float32)
    for _ in range(0, heads):
        queries = tl.load(q, mask=row_mask, other=0.0)
        if WIDEN:
            queries = queries.to(tl.float32)
        largest = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        mixed = tl.zeros((ROWS, CHANNELS), tl.float32)
        for start in range(0, tokens, COLS):
            cols = (start + tl.arange(0, COLS)).to(tl.int64)
            there = cols < tokens
            keys = tl.load(
                k + cols[:, None] * k_row + dims[None, :],
                mask=there[:, None] & (dims < D)[None, :],
                other=0.0,
            )
            if WIDEN:
                keys = keys.to(tl.float32)
            values = tl.load(
                maps + (cols - classes)[:, None],
                mask=(there & (cols >= classes))[:, None] & (of_maps < channels)[None, :],
                other=0.0,
            )
            logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
            logits = tl.where(there[None, :], logits, float("-inf"))
            higher = tl.maximum(largest, tl.max(logits, 1))
            shrink = tl.exp2(largest - higher)
            weights = tl.exp2(logits - higher[:, None])
            total = total * shrink + tl.sum(weights, 1)
            mixed = mixed * shrink[:, None] + tl.dot(weights, values, input_precision=WEIGHTS)
            largest = higher
        gathered += mixed / total[:, None]
        q += q_head
        k += k_head
    target = out + (batch * channels + of_maps)[None, :] * patches + rows[:, None]
    mask = (rows < patches)[:, None] & (of_maps < channels)[None, :]
    tl.store(target, tl.load(target, mask=mask, other=0.0) + gathered * factor, mask=mask)


@torch.library.triton_op("wsss_rt::affinity_propagate", mutates_args=())
def affinity_propagate(
    queries: list[Tensor], keys: list[Tensor], maps: Tensor, num_class_tokens: int, scale: float
) -> Tensor:
    """The operator; arguments as in the dispatcher."""
    maps = maps.contiguous()
    out = torch.zeros_like(maps)
    batch, channels, patches = maps.shape
    if not batch * channels * patches:
        return out
    width = tile(channels, 128)
    for query, key in zip(queries, keys, strict=True):
        if query.dtype != key.dtype:
            query, key = query.float(), key.float()
        q, k = dense_rows(query, key)
        heads, tokens, dim = q.shape[1:]
        wide = q.dtype == torch.float32
        exact = dot_precision(q)
        rows, cols = tile(patches, 64), tile(tokens, 32 if wide else 64)
        blocks = batch * triton.cdiv(patches, rows) * triton.cdiv(channels, width)
        wrap_triton(_propagate)[(blocks,)](
            q, k, maps, out, *q.stride()[:3], *k.stride()[:3],
            heads, tokens, num_class_tokens, channels, 1.0 / heads, scale * LOG2_E,
            D=dim, BLOCK_D=tile(dim, 128), CHANNELS=width, ROWS=rows, COLS=cols,
            # maps keep eleven bits where queries have no more
            PRECISION=exact, WEIGHTS=exact if wide else "tf32", WIDEN=widen(q), num_warps=4,
        )  # fmt: skip
    return out


@affinity_propagate.register_fake
def _(queries: list[Tensor], keys: list[Tensor], maps: Tensor, num_class_tokens: int, scale: float) -> Tensor:
    return torch.empty_like(maps, memory_format=torch.contiguous_format)
