"""Triton kernels: attention that keeps two numbers a row, and the head mean of its softmax, tile by tile."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsss_rt.kernels._blocks import load_rows, store_rows
from wsss_rt.kernels._launch import LOG2_E, dense_rows, dot_precision, meta_heads, widen, wrap_triton
from wsss_rt.kernels._tiles import fit, tile_for

# patches of a program that averages class rows
_STRIP = 256


@triton.jit
def _attend(
    q, k, v, out, peak, share, rows_found,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_batch, out_head, out_row,
    heads, tokens, classes, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr, CLASS_ROWS: tl.constexpr,
):  # fmt: skip
    """Rows of softmax(q k^T) v by online softmax, base 2; each row's maximum and 1 / sum, for the maps.

    Where class rows are asked for, tiles that hold class tokens multiply once more, and keep these rows. Kept
    on the way, they took the registers of the loop that all tiles run.
    """
    blocks = tl.cdiv(tokens, ROWS)
    of_head = tl.program_id(0) // blocks
    first = (tl.program_id(0) % blocks) * ROWS
    batch, head = (of_head // heads).to(tl.int64), (of_head % heads).to(tl.int64)
    lines, steps, dims = tl.arange(0, ROWS), tl.arange(0, COLS), tl.arange(0, BLOCK_D)
    there = first + lines < tokens
    q += batch * q_batch + head * q_head + first.to(tl.int64) * q_row
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    queries = load_rows(q, lines, q_row, there, dims, D, BLOCK_D, WIDEN)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, BLOCK_D), tl.float32)
    key = k
    for start in range(0, tokens, COLS):
        seen = start + steps < tokens
        keys = load_rows(key, steps, k_row, seen, dims, D, BLOCK_D, WIDEN)
        values = load_rows(v, steps, v_row, seen, dims, D, BLOCK_D, False)
        logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        logits = tl.where(seen[None, :], logits, float("-inf"))
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
        key += COLS * k_row
        v += COLS * v_row
    out += batch * out_batch + head * out_head + first.to(tl.int64) * out_row
    store_rows(out, mixed / total[:, None], lines, out_row, there, dims, D, BLOCK_D)
    row = of_head.to(tl.int64) * tokens + first
    tl.store(peak + row + lines, largest, mask=there)
    tl.store(share + row + lines, 1.0 / total, mask=there)
    if CLASS_ROWS:  # noqa: SIM102 - the compiler knows the one, and the program the other
        if first < classes:
            patches = tokens - classes
            rows_found += (of_head.to(tl.int64) * classes + first) * patches - classes
            shares = 1.0 / total
            wanted = first + lines < classes
            for start in range(0, tokens, COLS):
                seen = start + steps < tokens
                keys = load_rows(k, steps, k_row, seen, dims, D, BLOCK_D, WIDEN)
                logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
                tl.store(
                    rows_found + start + lines[:, None] * patches + steps[None, :],
                    tl.exp2(logits - largest[:, None]) * shares[:, None],
                    mask=wanted[:, None] & (seen & (start + steps >= classes))[None, :],
                )
                k += COLS * k_row


@triton.jit
def _average_rows(rows, before, target, heads, patches, classes, factor, STRIP: tl.constexpr):
    """A strip of a class token's attention (B, H, classes, N) to the patches: its mean over heads is added.

    What was ``before`` and the ``target``, (B, classes, N), may be one tensor.
    """
    across = tl.cdiv(patches, STRIP)
    line = tl.program_id(0) // across
    cols = (tl.program_id(0) % across) * STRIP + tl.arange(0, STRIP)
    batch = (line // classes).to(tl.int64)
    inside = cols < patches
    rows += (batch * heads * classes + line % classes) * patches
    total = tl.zeros((STRIP,), tl.float32)
    for _ in range(0, heads):
        total += tl.load(rows + cols, mask=inside, other=0.0)
        rows += classes * patches
    at = line.to(tl.int64) * patches + cols
    tl.store(target + at, tl.load(before + at, mask=inside, other=0.0) + total * factor, mask=inside)


@triton.jit
def _add_affinity(
    q, k, peak, share, before, target,
    q_batch, q_head, q_row, k_batch, k_head, k_row,
    heads, tokens, classes, factor, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    """One tile of the head mean between patches, added to its place in (B, N, N)."""
    patches = tokens - classes
    across = tl.cdiv(patches, COLS)
    tiles = across * tl.cdiv(patches, ROWS)
    batch, place = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    row, col = (place // across) * ROWS, (place % across) * COLS
    lines, steps, dims = tl.arange(0, ROWS), tl.arange(0, COLS), tl.arange(0, BLOCK_D)
    there, seen = row + lines < patches, col + steps < patches
    q += batch * q_batch + (classes + row).to(tl.int64) * q_row
    k += batch * k_batch + (classes + col).to(tl.int64) * k_row
    of_rows = batch * heads * tokens + classes + row
    total = tl.zeros((ROWS, COLS), tl.float32)
    for _ in range(0, heads):
        queries = load_rows(q, lines, q_row, there, dims, D, BLOCK_D, WIDEN)
        keys = load_rows(k, steps, k_row, seen, dims, D, BLOCK_D, WIDEN)
        highest = tl.load(peak + of_rows + lines, mask=there, other=0.0)
        shares = tl.load(share + of_rows + lines, mask=there, other=0.0)
        logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        total += tl.exp2(logits - highest[:, None]) * shares[:, None]
        q += q_head
        k += k_head
        of_rows += tokens
    corner = (batch * patches + row) * patches + col
    within = lines[:, None] * patches + steps[None, :]
    mask = there[:, None] & seen[None, :]
    total = tl.load(before + corner + within, mask=mask, other=0.0) + total * factor
    tl.store(target + corner + within, total, mask=mask)


def launches(num_class_tokens: int, class_map: Tensor | None, affinity: Tensor | None) -> tuple[str, ...]:
    """Which kernels a call launches; none for a map that nobody asks for or that has no element."""
    names = ["attend"]
    if class_map is not None and num_class_tokens:
        names.append("class_rows")
    if affinity is not None:
        names.append("affinity_block")
    return tuple(names)


def launch(
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
    patches = tokens - num_class_tokens
    stored = torch.float32 if widen(v) else v.dtype
    out = torch.empty((batch, tokens, heads, dim), dtype=stored, device=v.device).transpose(1, 2)
    peak = torch.empty((batch, heads, tokens), dtype=torch.float32, device=q.device)
    share = torch.empty_like(peak)
    rows_wanted = class_map is not None and num_class_tokens > 0
    # without class rows nothing is written there, and any pointer will do
    rows_found = peak
    if rows_wanted:
        size = (batch, heads, num_class_tokens, patches)
        rows_found = torch.empty(size, dtype=torch.float32, device=q.device)
    shape = {"D": dim, "BLOCK_D": fit(dim, 128), "PRECISION": dot_precision(q), "WIDEN": widen(q)}
    tile = tile_for("attend", q).within(tokens, tokens)
    if batch * tokens:
        wrap_triton(_attend)[(batch * heads * triton.cdiv(tokens, tile.rows),)](
            q, k, v, out, peak, share, rows_found,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
            heads, tokens, num_class_tokens, scale * LOG2_E,
            ROWS=tile.rows, COLS=tile.cols, CLASS_ROWS=rows_wanted, **shape,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    if not batch * patches:
        return out.to(v.dtype)
    if class_map is not None and rows_wanted:
        strip = min(_STRIP, triton.next_power_of_2(patches))
        wrap_triton(_average_rows)[(batch * num_class_tokens * triton.cdiv(patches, strip),)](
            rows_found, class_map, class_map, heads, patches, num_class_tokens, weight / heads,
            STRIP=strip, num_warps=4,
        )  # fmt: skip
    if affinity is not None:
        # rows and columns as above, so that logits are summed as above: the affinity is a power of their
        # distance to the largest
        other = tile_for("affinity", q)
        count = batch * triton.cdiv(patches, tile.rows) * triton.cdiv(patches, tile.cols)
        wrap_triton(_add_affinity)[(count,)](
            q, k, peak, share, affinity, affinity, *q.stride()[:3], *k.stride()[:3],
            heads, tokens, num_class_tokens, weight / heads, scale * LOG2_E,
            ROWS=tile.rows, COLS=tile.cols, **shape, num_warps=other.warps, num_stages=other.stages,
        )  # fmt: skip
    return out.to(v.dtype)


attention_aggregate = torch.library.triton_op(
    "wsss_rt::attention_aggregate", mutates_args={"class_map", "affinity"}
)(launch)


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


def _example(
    dtype: torch.dtype, dim: int, classes: int, *, rows: bool = True, affinity: bool = True
) -> Callable[[], Tensor]:
    def call() -> Tensor:
        q, k, v = meta_heads(16, 733, dim, dtype)
        patches = 733 - classes
        maps = [
            torch.empty((16, wanted, patches), device="meta") if asked else None
            for wanted, asked in ((classes, rows), (patches, affinity))
        ]
        return launch(q, k, v, classes, maps[0], maps[1], 1.0, dim**-0.5)

    return call


#: Calls as models make them, for ``kernels/ahead_of_time.py``.
EXAMPLES: dict[str, Callable[[], Tensor]] = {
    "bf16 d64, both maps": _example(torch.bfloat16, 64, 20),
    "bf16 d64, one class token": _example(torch.bfloat16, 64, 1, affinity=False),
    "bf16 d64, affinity": _example(torch.bfloat16, 64, 20, rows=False),
    "fp16 d64, both maps": _example(torch.float16, 64, 20),
    "fp32 d64, both maps": _example(torch.float32, 64, 20),
    "bf16 d32, both maps": _example(torch.bfloat16, 32, 20),
}
