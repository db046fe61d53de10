"""Triton kernels: selection by comparing all pairs, online softmax over selected keys, mass spread anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsss_rt.kernels._blocks import load_rows, store_rows
from wsss_rt.kernels._launch import LOG2_E, dense_rows, dot_precision, meta_heads, widen, wrap_triton
from wsss_rt.kernels._tiles import fit, tile_for
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
    q, k, v, selected, places, out,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_batch, out_head, out_row,
    heads, asking, tokens, scale, floor, epsilon,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr, COMPACT: tl.constexpr,
):  # fmt: skip
    """Rows of the masked attention; the maximum is over all keys, the sum over those that are kept."""
    blocks = tl.cdiv(asking, ROWS)
    of_head = tl.program_id(0) // blocks
    first = (tl.program_id(0) % blocks) * ROWS
    batch, head = (of_head // heads).to(tl.int64), (of_head % heads).to(tl.int64)
    lines, steps, dims = tl.arange(0, ROWS), tl.arange(0, COLS), tl.arange(0, BLOCK_D)
    there = first + lines < asking
    # which token each query is: itself is always kept
    own = first + lines
    if COMPACT:
        own = tl.load(places + batch * asking + own, mask=there, other=0)
    q += batch * q_batch + head * q_head + first.to(tl.int64) * q_row
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    selected += batch * tokens
    queries = load_rows(q, lines, q_row, there, dims, D, BLOCK_D, WIDEN)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, BLOCK_D), tl.float32)
    everything = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, tokens, COLS):
        cols = start + steps
        seen = cols < tokens
        keys = load_rows(k, steps, k_row, seen, dims, D, BLOCK_D, WIDEN)
        values = load_rows(v, steps, v_row, seen, dims, D, BLOCK_D, True)
        chosen = tl.load(selected + cols, mask=seen, other=0) != 0
        logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        logits = tl.where(seen[None, :], logits, float("-inf"))
        higher = tl.maximum(largest, tl.max(logits, 1))
        shrink = tl.exp2(largest - higher)
        kept = chosen[None, :] | ((own[:, None] == cols[None, :]) & seen[None, :])
        weights = tl.where(kept, tl.exp2(logits - higher[:, None]), 0.0)
        total = total * shrink + tl.sum(weights, 1)
        # narrower weights would not be the official float32
        mixed = mixed * shrink[:, None] + tl.dot(weights, values, input_precision="ieee")
        everything += tl.sum(values, 0)
        largest = higher
        k += COLS * k_row
        v += COLS * v_row
    mixed = (mixed + floor * everything[None, :]) / (total + epsilon)[:, None]
    out += batch * out_batch + head * out_head + first.to(tl.int64) * out_row
    store_rows(out, mixed, lines, out_row, there, dims, D, BLOCK_D)


@triton.jit
def _spread(
    mass, selected, scores, priorities, refined, tokens, epsilon, BLOCK: tl.constexpr
):  # fmt: skip
    """Priorities of an image's selected tokens, and the mass that they spread anew; a program an image."""
    at = tl.program_id(0).to(tl.int64) * tokens
    steps = tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    shared = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, tokens, BLOCK):
        seen = start + steps < tokens
        chosen = tl.load(selected + at + start + steps, mask=seen, other=0) != 0
        score = tl.load(scores + at + start + steps, mask=seen, other=0.0)
        largest = tl.maximum(largest, tl.where(chosen, score, float("-inf")))
        held = tl.load(mass + at + start + steps, mask=seen, other=0.0)
        shared += tl.where(chosen, held, 0.0)
    highest = tl.max(largest, 0)
    # where nothing is selected
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    moved = tl.sum(shared, 0)
    weights = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, tokens, BLOCK):
        seen = start + steps < tokens
        chosen = tl.load(selected + at + start + steps, mask=seen, other=0) != 0
        score = tl.load(scores + at + start + steps, mask=seen, other=0.0)
        weights += tl.where(chosen, tl.exp(tl.where(chosen, score, highest) - highest), 0.0)
    # without an epsilon the smallest normal number, so that nothing selected divides by no zero
    total = tl.sum(weights, 0)
    if epsilon > 0:
        total += epsilon * tl.exp(-highest)
    total = tl.maximum(total, 1.1754943508222875e-38)
    for start in range(0, tokens, BLOCK):
        seen = start + steps < tokens
        chosen = tl.load(selected + at + start + steps, mask=seen, other=0) != 0
        score = tl.load(scores + at + start + steps, mask=seen, other=0.0)
        held = tl.load(mass + at + start + steps, mask=seen, other=0.0)
        share = tl.where(chosen, tl.exp(tl.where(chosen, score, highest) - highest), 0.0) / total
        tl.store(priorities + at + start + steps, share, mask=seen)
        tl.store(refined + at + start + steps, tl.where(chosen, share * moved, held), mask=seen)


def launch_select(mass: Tensor, threshold: float) -> Tensor:
    """The operator; ``mass`` (B, N) float32."""
    mass = mass.contiguous()
    batch, tokens = mass.shape
    selected = torch.empty((batch, tokens), dtype=torch.int8, device=mass.device)
    rows, cols = fit(tokens, 32), fit(tokens, 128)
    if batch * tokens:
        wrap_triton(_select)[(batch * triton.cdiv(tokens, rows),)](
            mass, selected, tokens, threshold, ROWS=rows, COLS=cols, num_warps=4
        )
    return selected.bool()


def launch(q: Tensor, k: Tensor, v: Tensor, selected: Tensor, places: Tensor | None, scale: float) -> Tensor:
    """The operator; arguments as in the dispatcher."""
    kept = v.dtype
    if not q.dtype == k.dtype == v.dtype:
        q, k, v = q.float(), k.float(), v.float()
    q, k, v = dense_rows(q, k, v)
    batch, heads, asking, dim = q.shape
    tokens = k.shape[2]
    stored = torch.float32 if widen(v) else kept
    out = torch.empty((batch, asking, heads, dim), dtype=stored, device=v.device).transpose(1, 2)
    tile = tile_for("reattend", q).within(asking, tokens)
    chosen = selected.to(torch.uint8).contiguous()
    # without places nothing is read there, and any pointer will do
    own = chosen if places is None else places.to(torch.int32).contiguous()
    if batch * asking:
        wrap_triton(_reattend)[(batch * heads * triton.cdiv(asking, tile.rows),)](
            q, k, v, chosen, own, out,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
            heads, asking, tokens, scale * LOG2_E, EPSILON / tokens, EPSILON,
            D=dim, BLOCK_D=fit(dim, 128), ROWS=tile.rows, COLS=tile.cols, PRECISION=dot_precision(q),
            WIDEN=widen(q), COMPACT=places is not None, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return out.to(kept)


def launch_spread(mass: Tensor, selected: Tensor, scores: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The operator; all (B, N), ``mass`` and ``scores`` float32."""
    mass, scores = mass.contiguous(), scores.contiguous()
    batch, tokens = mass.shape
    priorities, refined = torch.empty_like(mass), torch.empty_like(mass)
    if batch * tokens:
        wrap_triton(_spread)[(batch,)](
            mass, selected.to(torch.uint8).contiguous(), scores, priorities, refined, tokens, epsilon,
            BLOCK=fit(tokens, 1024), num_warps=4,
        )  # fmt: skip
    return priorities, refined


select_tokens = torch.library.triton_op("wsss_rt::select_tokens", mutates_args=())(launch_select)
masked_reattention = torch.library.triton_op("wsss_rt::masked_reattention", mutates_args=())(launch)
spread_mass = torch.library.triton_op("wsss_rt::spread_mass", mutates_args=())(launch_spread)


@select_tokens.register_fake
def _(mass: Tensor, threshold: float) -> Tensor:
    return torch.empty_like(mass, dtype=torch.bool)


@masked_reattention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, selected: Tensor, places: Tensor | None, scale: float) -> Tensor:
    batch, heads, asking, dim = q.shape
    return v.new_empty((batch, asking, heads, dim)).transpose(1, 2)


@spread_mass.register_fake
def _(mass: Tensor, selected: Tensor, scores: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    mass = mass.contiguous()
    return torch.empty_like(mass), torch.empty_like(mass)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, scale = inputs
    ctx.save_for_backward(*tensors)
    ctx.scale = scale


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    *heads, selected, places = ctx.saved_tensors
    with torch.enable_grad():
        q, k, v = (part.detach().requires_grad_() for part in heads)
        again = reference.masked_reattention(q, k, v, selected, places, scale=ctx.scale)
        return *torch.autograd.grad(again, (q, k, v), gradient), None, None, None


masked_reattention.register_autograd(_backward, setup_context=_remember)


def _example(dtype: torch.dtype, dim: int, *, asking: int | None = None) -> Callable[[], Any]:
    def call() -> Any:
        q, k, v = meta_heads(16, 713, dim, dtype)
        selected, places = torch.empty((16, 713), dtype=torch.bool, device="meta"), None
        if asking is not None:
            places = torch.empty((16, asking), dtype=torch.int32, device="meta")
            q = torch.empty((16, asking, 384 // dim, dim), dtype=dtype, device="meta").transpose(1, 2)
        return launch(q, k, v, selected, places, dim**-0.5)

    return call


def _example_of_mass() -> None:
    mass, scores = torch.empty((2, 16, 713), device="meta")
    launch_spread(mass, launch_select(mass, 0.6), scores, EPSILON)


#: Calls as models make them, for ``kernels/ahead_of_time.py``.
EXAMPLES: dict[str, Callable[[], Any]] = {
    "bf16 d64": _example(torch.bfloat16, 64),
    "bf16 d64, compact": _example(torch.bfloat16, 64, asking=200),
    "fp32 d64": _example(torch.float32, 64),
    "select and spread": _example_of_mass,
}
