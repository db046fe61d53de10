"""Triton kernels: attention that keeps two numbers a row, and the head mean of its softmax, tile by tile."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsss_rt.kernels._launch import LOG2_E, dense_rows, dot_precision, tile, widen, wrap_triton


@triton.jit
def _attend(
    q, k, v, out, peak, share,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_batch, out_head, out_row,
    heads, tokens, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """Rows of softmax(q k^T) v by online softmax, base 2; each row's maximum and 1 / sum, for the maps."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(tokens, ROWS)
    of_head = program // blocks
    batch, head = of_head // heads, of_head % heads
    rows = (program % blocks) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, BLOCK_D)
    row_mask = (rows < tokens)[:, None] & (dims < D)[None, :]
    queries = tl.load(
        q + batch * q_batch + head * q_head + rows[:, None] * q_row + dims[None, :], mask=row_mask, other=0.0
    )
    if WIDEN:
        queries = queries.to(tl.float32)
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for start in range(0, tokens, COLS):
        cols = (start + tl.arange(0, COLS)).to(tl.int64)
        col_mask = (cols < tokens)[:, None] & (dims < D)[None, :]
        keys = tl.load(k + cols[:, None] * k_row + dims[None, :], mask=col_mask, other=0.0)
        values = tl.load(v + cols[:, None] * v_row + dims[None, :], mask=col_mask, other=0.0)
        if WIDEN:
            keys = keys.to(tl.float32)
        logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        logits = tl.where((cols < tokens)[None, :], logits, float("-inf"))
        higher = tl.maximum(largest, tl.max(logits, 1))
        shrink = tl.exp2(largest - higher)
        weights = tl.exp2(logits - higher[:, None])
        total = total * shrink + tl.sum(weights, 1)
        mixed = mixed * shrink[:, None]
        weights = weights.to(values.dtype)
        if WIDEN:
            weights, values = weights.to(tl.float32), values.to(tl.float32)
        mixed += tl.dot(weights, values, input_precision=PRECISION)
        largest = higher
    mixed = mixed / total[:, None]
    tl.store(
        out + batch * out_batch + head * out_head + rows[:, None] * out_row + dims[None, :],
        mixed.to(out.dtype.element_ty),
        mask=row_mask,
    )
    tl.store(peak + of_head * tokens + rows, largest, mask=rows < tokens)
    tl.store(share + of_head * tokens + rows, 1.0 / total, mask=rows < tokens)


@triton.jit
def _add_block(
    q, k, peak, share, target,
    q_batch, q_head, q_row, k_batch, k_head, k_row,
    heads, tokens, first_row, rows_wanted, first_col, factor, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """One tile of the head mean, added to its place in (B, rows_wanted, tokens - first_col)."""
    program = tl.program_id(0).to(tl.int64)
    cols_wanted = tokens - first_col
    across = tl.cdiv(cols_wanted, COLS)
    tiles = across * tl.cdiv(rows_wanted, ROWS)
    batch, place = program // tiles, program % tiles
    rows = (place // across) * ROWS + tl.arange(0, ROWS)
    cols = (place % across) * COLS + tl.arange(0, COLS)
    dims = tl.arange(0, BLOCK_D)
    row_mask, col_mask = rows < rows_wanted, cols < cols_wanted
    q += batch * q_batch + (first_row + rows)[:, None] * q_row + dims[None, :]
    k += batch * k_batch + (first_col + cols)[:, None] * k_row + dims[None, :]
    of_rows = batch * heads * tokens + first_row + rows
    total = tl.zeros((ROWS, COLS), tl.float32)
    for _ in range(0, heads):
        queries = tl.load(q, mask=row_mask[:, None] & (dims < D)[None, :], other=0.0)
        keys = tl.load(k, mask=col_mask[:, None] & (dims < D)[None, :], other=0.0)
        if WIDEN:
            queries, keys = queries.to(tl.float32), keys.to(tl.float32)
        highest = tl.load(peak + of_rows, mask=row_mask, other=0.0)
        shares = tl.load(share + of_rows, mask=row_mask, other=0.0)
        logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        total += tl.exp2(logits - highest[:, None]) * shares[:, None]
        q += q_head
        k += k_head
        of_rows += tokens
    target += (batch * rows_wanted + rows[:, None]) * cols_wanted + cols[None, :]
    mask = row_mask[:, None] & col_mask[None, :]
    tl.store(target, tl.load(target, mask=mask, other=0.0) + total * factor, mask=mask)


def launches(num_class_tokens: int, class_map: Tensor | None, affinity: Tensor | None) -> tuple[str, ...]:
    """Which kernels a call launches; none for a map that nobody asks for or that has no element."""
    names = ["attend"]
    if class_map is not None and num_class_tokens:
        names.append("class_block")
    if affinity is not None:
        names.append("affinity_block")
    return tuple(names)


@torch.library.triton_op("wsss_rt::attention_aggregate", mutates_args={"class_map", "affinity"})
def attention_aggregate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_class_tokens: int,
    class_map: Tensor | None,
    affinity: Tensor | None,
    weight: float,
    scale: float,
) -> Tensor:
    """The operator; arguments as in the dispatcher, all of one type."""
    q, k, v = dense_rows(q, k, v)
    batch, heads, tokens, dim = q.shape
    stored = torch.float32 if widen(v) else v.dtype
    out = torch.empty((batch, tokens, heads, dim), dtype=stored, device=v.device).transpose(1, 2)
    peak = torch.empty((batch, heads, tokens), dtype=torch.float32, device=q.device)
    share = torch.empty_like(peak)
    wide = q.dtype == torch.float32
    shape = {"D": dim, "BLOCK_D": tile(dim, 128), "num_warps": 4}
    exact = dot_precision(q)
    rows, cols = tile(tokens, 64 if wide else 128), tile(tokens, 32 if wide else 64)
    if batch * tokens:
        wrap_triton(_attend)[(batch * heads * triton.cdiv(tokens, rows),)](
            q, k, v, out, peak, share,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
            heads, tokens, scale * LOG2_E,
            ROWS=rows, COLS=cols, PRECISION=exact, WIDEN=widen(q), **shape,
        )  # fmt: skip
    patches = tokens - num_class_tokens
    if not batch * patches:
        return out.to(v.dtype)
    strides = (*q.stride()[:3], *k.stride()[:3])
    factor = weight / heads
    blocks = []
    if class_map is not None and num_class_tokens:
        blocks.append((class_map, 0, num_class_tokens))
    if affinity is not None:
        blocks.append((affinity, num_class_tokens, patches))
    for target, first, wanted in blocks:
        # tiles as above, so that logits are summed as above: maps are powers of their distance to the largest
        count = batch * triton.cdiv(wanted, rows) * triton.cdiv(patches, cols)
        wrap_triton(_add_block)[(count,)](
            q, k, peak, share, target, *strides,
            heads, tokens, first, wanted, num_class_tokens, factor, scale * LOG2_E,
            ROWS=rows, COLS=cols, PRECISION=exact, WIDEN=widen(q), **shape,
        )  # fmt: skip
    return out.to(v.dtype)


@attention_aggregate.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_class_tokens: int,
    class_map: Tensor | None,
    affinity: Tensor | None,
    weight: float,
    scale: float,
) -> Tensor:
    batch, heads, tokens, dim = v.shape
    return v.new_empty((batch, tokens, heads, dim)).transpose(1, 2)
