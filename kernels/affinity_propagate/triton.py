"""Triton kernel: attention whose values are the maps, shared by all heads, and nothing for class tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsss_rt.kernels._blocks import load_rows
from wsss_rt.kernels._launch import LOG2_E, dense_rows, dot_precision, meta_heads, widen, wrap_triton
from wsss_rt.kernels._tiles import fit, tile_for

# channels of a program: more held two sums of 128 columns, which spilled
MOST_CHANNELS = 64


@triton.jit
def _propagate(
    q, k, maps, before, out,
    q_batch, q_head, q_row, k_batch, k_head, k_row,
    heads, tokens, classes, channels, factor, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    PRECISION: tl.constexpr, WEIGHTS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """A tile of what was ``before`` plus one layer's share: some patches, some channels, all heads."""
    patches = tokens - classes
    down = tl.cdiv(patches, ROWS)
    across = tl.cdiv(channels, CHANNELS)
    batch, place = (tl.program_id(0) // (down * across)).to(tl.int64), tl.program_id(0) % (down * across)
    row, channel = (place % down) * ROWS, (place // down) * CHANNELS
    lines, steps, dims = tl.arange(0, ROWS), tl.arange(0, COLS), tl.arange(0, BLOCK_D)
    planes = tl.arange(0, CHANNELS)
    there, known = row + lines < patches, channel + planes < channels
    q += batch * q_batch + (classes + row).to(tl.int64) * q_row
    k += batch * k_batch
    maps += (batch * channels + channel) * patches - classes
    gathered = tl.zeros((ROWS, CHANNELS), tl.float32)
    for _ in range(0, heads):
        queries = load_rows(q, lines, q_row, there, dims, D, BLOCK_D, WIDEN)
        largest = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        mixed = tl.zeros((ROWS, CHANNELS), tl.float32)
        key = k
        for start in range(0, tokens, COLS):
            seen = start + steps < tokens
            keys = load_rows(key, steps, k_row, seen, dims, D, BLOCK_D, WIDEN)
            values = tl.load(
                maps + start + planes[None, :] * patches + steps[:, None],
                mask=(seen & (start + steps >= classes))[:, None] & known[None, :],
                other=0.0,
            )
            logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
            logits = tl.where(seen[None, :], logits, float("-inf"))
            higher = tl.maximum(largest, tl.max(logits, 1))
            shrink = tl.exp2(largest - higher)
            weights = tl.exp2(logits - higher[:, None])
            total = total * shrink + tl.sum(weights, 1)
            mixed = mixed * shrink[:, None] + tl.dot(weights, values, input_precision=WEIGHTS)
            largest = higher
            key += COLS * k_row
        gathered += mixed / total[:, None]
        q += q_head
        k += k_head
    corner = (batch * channels + channel) * patches + row
    within = planes[None, :] * patches + lines[:, None]
    mask = there[:, None] & known[None, :]
    gathered = tl.load(before + corner + within, mask=mask, other=0.0) + gathered * factor
    tl.store(out + corner + within, gathered, mask=mask)


def launch(
    queries: list[Tensor], keys: list[Tensor], maps: Tensor, num_class_tokens: int, scale: float
) -> Tensor:
    """The operator; arguments as in the dispatcher."""
    maps = maps.contiguous()
    out = torch.zeros_like(maps)
    batch, channels, patches = maps.shape
    if not batch * channels * patches:
        return out
    width = fit(channels, MOST_CHANNELS)
    for query, key in zip(queries, keys, strict=True):
        if query.dtype != key.dtype:
            query, key = query.float(), key.float()
        q, k = dense_rows(query, key)
        heads, tokens, dim = q.shape[1:]
        wide = q.dtype == torch.float32
        exact = dot_precision(q)
        tile = tile_for("propagate", q).within(patches, tokens)
        blocks = batch * triton.cdiv(patches, tile.rows) * triton.cdiv(channels, width)
        wrap_triton(_propagate)[(blocks,)](
            q, k, maps, out, out, *q.stride()[:3], *k.stride()[:3],
            heads, tokens, num_class_tokens, channels, 1.0 / heads, scale * LOG2_E,
            D=dim, BLOCK_D=fit(dim, 128), CHANNELS=width, ROWS=tile.rows, COLS=tile.cols,
            # maps keep eleven bits where queries have no more
            PRECISION=exact, WEIGHTS=exact if wide else "tf32", WIDEN=widen(q),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out


affinity_propagate = torch.library.triton_op("wsss_rt::affinity_propagate", mutates_args=())(launch)


@affinity_propagate.register_fake
def _(queries: list[Tensor], keys: list[Tensor], maps: Tensor, num_class_tokens: int, scale: float) -> Tensor:
    return torch.empty_like(maps, memory_format=torch.contiguous_format)


def _example(dtype: torch.dtype, dim: int, channels: int) -> Callable[[], Tensor]:
    def call() -> Tensor:
        q, k = meta_heads(16, 733, dim, dtype)[:2]
        return launch([q], [k], torch.empty((16, channels, 713), device="meta"), 20, dim**-0.5)

    return call


#: Calls as models make them, for ``kernels/ahead_of_time.py``.
EXAMPLES: dict[str, Callable[[], Tensor]] = {
    "bf16 d64, 20 maps": _example(torch.bfloat16, 64, 20),
    "bf16 d64, 80 maps": _example(torch.bfloat16, 64, 80),
    "fp16 d64, 20 maps": _example(torch.float16, 64, 20),
    "fp32 d64, 20 maps": _example(torch.float32, 64, 20),
    "bf16 d32, 20 maps": _example(torch.bfloat16, 32, 20),
}
