"""Pieces that the Triton kernels share. Imports Triton: only kernels' own modules import this.

Addresses are a base in int64, the same for a whole tile, and offsets within the tile in int32, which a tile
cannot exceed: int64 for every element took so many registers that tiles spilled.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(
    base, lines, stride, inside, dims, D: tl.constexpr, BLOCK_D: tl.constexpr, WIDEN: tl.constexpr
):  # fmt: skip
    """Rows (len(lines), BLOCK_D) at ``base + line * stride``; 0 where not ``inside``, and beyond D."""
    mask = inside[:, None]
    if D != BLOCK_D:
        mask = mask & (dims < D)[None, :]
    rows = tl.load(base + lines[:, None] * stride + dims[None, :], mask=mask, other=0.0)
    if WIDEN:
        rows = rows.to(tl.float32)
    return rows


@triton.jit
def store_rows(base, rows, lines, stride, inside, dims, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write what :func:`load_rows` reads, in the type of what ``base`` points to."""
    mask = inside[:, None]
    if D != BLOCK_D:
        mask = mask & (dims < D)[None, :]
    tl.store(base + lines[:, None] * stride + dims[None, :], rows.to(base.dtype.element_ty), mask=mask)
