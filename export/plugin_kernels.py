"""The kernels in the order of arguments that TensorRT's quick plugins call: inputs, whole numbers, outputs.

Tensors are contiguous there, so strides follow from the shape; what is no whole number is a constant. Imports
Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl

from wsss_rt.kernels.affinity_propagate.triton import _propagate
from wsss_rt.kernels.attention_aggregate.triton import _add_affinity, _attend, _average_rows


@triton.jit
def attend_rows(
    q, k, v, heads, tokens, out, peak, share, rows,
    CLASSES: tl.constexpr, SCALE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``_attend`` over contiguous (B, H, T, d)."""
    head = tokens * D
    batch = heads * head
    _attend(
        q, k, v, out, peak, share, rows,
        batch, head, D, batch, head, D, batch, head, D, batch, head, D, heads, tokens, CLASSES, SCALE,
        D, BLOCK_D, ROWS, COLS, PRECISION, False, CLASSES > 0,
    )  # fmt: skip


@triton.jit
def average_rows(rows, before, heads, patches, classes, after, FACTOR: tl.constexpr, STRIP: tl.constexpr):
    """``_average_rows``; FACTOR is the layer's weight, and the mean over heads is taken here."""
    _average_rows(rows, before, after, heads, patches, classes, FACTOR / heads, STRIP)


@triton.jit
def add_affinity(
    q, k, peak, share, before, heads, tokens, classes, after,
    FACTOR: tl.constexpr, SCALE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``_add_affinity`` over contiguous (B, H, T, d)."""
    head = tokens * D
    batch = heads * head
    _add_affinity(
        q, k, peak, share, before, after, batch, head, D, batch, head, D,
        heads, tokens, classes, FACTOR / heads, SCALE, D, BLOCK_D, ROWS, COLS, PRECISION, False,
    )  # fmt: skip


@triton.jit
def propagate_layer(
    q, k, maps, before, heads, tokens, classes, channels, after, SCALE: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    PRECISION: tl.constexpr, WEIGHTS: tl.constexpr,
):  # fmt: skip
    """``_propagate`` over contiguous (B, H, T, d)."""
    head = tokens * D
    batch = heads * head
    _propagate(
        q, k, maps, before, after, batch, head, D, batch, head, D,
        heads, tokens, classes, channels, 1.0 / heads, SCALE,
        D, BLOCK_D, CHANNELS, ROWS, COLS, PRECISION, WEIGHTS, False,
    )  # fmt: skip
