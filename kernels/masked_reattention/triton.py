"""Triton kernels: selection by comparing all pairs, and online softmax over selected keys."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsss_rt.kernels._launch import LOG2_E, dense_rows, dot_precision, tile, widen, wrap_triton
from wsss_rt.kernels.masked_reattention import reference
from wsss_rt.kernels.masked_reattention.constants import EPSILON


@triton.jit
def _select(mass, selected, tokens, threshold, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Whether the mass of a row's token, and of all that come before it, stays below the threshold."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(tokens, ROWS)
    rows = (program % blocks) * ROWS + tl.arange(0, ROWS)
    mass += (program // blocks) * tokens
    own = tl.load(mass + rows, mask=rows < tokens, other=0.0)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, tokens, COLS):
        cols = (start + tl.arange(0, COLS)).to(tl.int64)
        other = tl.load(mass + cols, mask=cols < tokens, other=0.0)[None, :]
        before = (other > own[:, None]) | ((other == own[:, None]) & (cols[None, :] <= rows[:, None]))
        total += tl.sum(tl.where(before, other, 0.0), 1)
    tl.store(
        selected + (program // blocks) * tokens + rows, (total < threshold).to(tl.int8), mask=rows < tokens
    )


@triton.jit
def _reattend(
    q, k, v, selected, out,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_batch, out_head, out_row,
    heads, tokens, scale, floor, epsilon,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """Rows of the masked attention; the maximum is over all keys, the sum over those that are kept."""
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
    selected += batch * tokens
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, BLOCK_D), tl.float32)
    everything = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, tokens, COLS):
        cols = (start + tl.arange(0, COLS)).to(tl.int64)
        there = cols < tokens
        col_mask = there[:, None] & (dims < D)[None, :]
        keys = tl.load(k + cols[:, None] * k_row + dims[None, :], mask=col_mask, other=0.0)
        values = tl.load(v + cols[:, None] * v_row + dims[None, :], mask=col_mask, other=0.0).to(tl.float32)
        if WIDEN:
            keys = keys.to(tl.float32)
        chosen = tl.load(selected + cols, mask=there, other=0) != 0
        logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        logits = tl.where(there[None, :], logits, float("-inf"))
        higher = tl.maximum(largest, tl.max(logits, 1))
        shrink = tl.exp2(largest - higher)
        kept = chosen[None, :] | ((rows[:, None] == cols[None, :]) & there[None, :])
        weights = tl.where(kept, tl.exp2(logits - higher[:, None]), 0.0)
        total = total * shrink + tl.sum(weights, 1)
        # narrower weights would not be the official float32
        mixed = mixed * shrink[:, None] + tl.dot(weights, values, input_precision="ieee")
        everything += tl.sum(values, 0)
        largest = higher
    mixed = (mixed + floor * everything[None, :]) / (total + epsilon)[:, None]
    tl.store(
        out + batch * out_batch + head * out_head + rows[:, None] * out_row + dims[None, :],
        mixed.to(out.dtype.element_ty),
        mask=row_mask,
    )


@torch.library.triton_op("wsss_rt::select_tokens", mutates_args=())
def select_tokens(mass: Tensor, threshold: float) -> Tensor:
    """The operator; ``mass`` (B, N) float32."""
    mass = mass.contiguous()
    batch, tokens = mass.shape
    selected = torch.empty((batch, tokens), dtype=torch.int8, device=mass.device)
    rows, cols = tile(tokens, 32), tile(tokens, 128)
    if batch * tokens:
        wrap_triton(_select)[(batch * triton.cdiv(tokens, rows),)](
            mass, selected, tokens, threshold, ROWS=rows, COLS=cols, num_warps=4
        )
    return selected.bool()


@torch.library.triton_op("wsss_rt::masked_reattention", mutates_args=())
def masked_reattention(q: Tensor, k: Tensor, v: Tensor, selected: Tensor, scale: float) -> Tensor:
    """The operator; arguments as in the dispatcher."""
    kept = v.dtype
    if not q.dtype == k.dtype == v.dtype:
        q, k, v = q.float(), k.float(), v.float()
    q, k, v = dense_rows(q, k, v)
    batch, heads, tokens, dim = q.shape
    stored = torch.float32 if widen(v) else kept
    out = torch.empty((batch, tokens, heads, dim), dtype=stored, device=v.device).transpose(1, 2)
    rows, cols = tile(tokens, 64), tile(tokens, 32)
    if batch * tokens:
        wrap_triton(_reattend)[(batch * heads * triton.cdiv(tokens, rows),)](
            q, k, v, selected.to(torch.uint8).contiguous(), out,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
            heads, tokens, scale * LOG2_E, EPSILON / tokens, EPSILON,
            D=dim, BLOCK_D=tile(dim, 128), ROWS=rows, COLS=cols, PRECISION=dot_precision(q), WIDEN=widen(q),
            num_warps=4,
        )  # fmt: skip
    return out.to(kept)


@select_tokens.register_fake
def _(mass: Tensor, threshold: float) -> Tensor:
    return torch.empty_like(mass, dtype=torch.bool)


@masked_reattention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, selected: Tensor, scale: float) -> Tensor:
    batch, heads, tokens, dim = v.shape
    return v.new_empty((batch, tokens, heads, dim)).transpose(1, 2)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, scale = inputs
    ctx.save_for_backward(*tensors)
    ctx.scale = scale


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    *heads, selected = ctx.saved_tensors
    with torch.enable_grad():
        q, k, v = (part.detach().requires_grad_() for part in heads)
        again = reference.masked_reattention(q, k, v, selected, scale=ctx.scale)
        return *torch.autograd.grad(again, (q, k, v), gradient), None, None


masked_reattention.register_autograd(_backward, setup_context=_remember)
