"""Attention and its mean over heads in AMX tiles: no head's matrix is ever whole.

A block of 32 queries at a time, and for it one head after the other: logits, their softmax, its share of the
mean, and the product with the values, all in the core's own cache. A graph of matrix products and softmax
writes and reads (H, T, T) four times instead, and rounds the logits to bfloat16 on the way; here they, the
softmax and the mean stay float32, and only what a tile multiplies is rounded.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from wsss_rt.engines.amx.kernels import attend, pack
from wsss_rt.engines.amx.tiles import SHAPES
from wsss_rt.jit import compiling_told

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from wsss_rt.crew import Crew

#: Widths of a head that the kernels take.
HEAD_WIDTHS = (32, 64)
COMPILING = "compiling attention for this processor, once per machine (some seconds)"
# queries of a block: two tiles
_BLOCK = 32
_LOG2_E = math.log2(math.e)


class Part(NamedTuple):
    """A part of the head mean (T, T) that a caller wants.

    Attributes:
        row, column: where it begins.
        into: (rows, columns) float32, up to the last column; is written.
        before: what is added to it, as large; None for nothing.
    """

    row: int
    column: int
    into: NDArray[np.float32]
    before: NDArray[np.float32] | None = None


class Workspace:
    """Memory that calls of one thread, and their crew, work in; grows to the largest image."""

    def __init__(self) -> None:
        self._buffers: dict[str, NDArray[np.uint8]] = {}

    def array(self, name: str, shape: Sequence[int], kind: type[np.generic]) -> NDArray[Any]:
        """Of this name, with what it last held; begins at a cache line, or every tile would straddle two."""
        size = math.prod(shape) * np.dtype(kind).itemsize
        held = self._buffers.get(name)
        if held is None or len(held) < size:
            raw = np.empty(size + 64, np.uint8)
            held = self._buffers[name] = raw[-raw.ctypes.data % 64 :]
        return held[:size].view(kind).reshape(shape)


def attention(
    qkv: NDArray[np.float32],
    out: NDArray[np.float32],
    parts: Sequence[Part] = (),
    *,
    heads: int,
    scale: float,
    workspace: Workspace,
    crew: Crew,
) -> None:
    """``softmax(q k^T * scale) v`` of one image, and parts of the mean of the softmax over heads.

    Queries, keys, values and weights are rounded to bfloat16 where they are multiplied; all else is float32.

    Args:
        qkv: (T, 3 * H * d), contiguous: the queries of all heads, their keys, their values; d as in
            :data:`HEAD_WIDTHS`.
        out: (T, H * d), is written.
        parts: of the head mean; up to two.
        heads: H.
        scale: of the logits.
        workspace: of the calling thread.
        crew: shares the blocks.
    """
    tokens = len(qkv)
    width = qkv.shape[1] // (3 * heads)
    filled = -(-tokens // _BLOCK) * _BLOCK
    queries = workspace.array("queries", (heads, filled, width), np.int16)
    keys = workspace.array("keys", (heads, filled // 16, width // 2, 16), np.int32)
    values = workspace.array("values", (heads, width // 16, filled // 2, 16), np.int32)
    factor = np.float32(scale * _LOG2_E)
    one, other = [*parts, _NO_PART, _NO_PART][:2]
    starts = np.array([[one.row, one.column], [other.row, other.column]], np.int64)
    zeros = workspace.array("zeros", (1, tokens), np.float32)
    zeros.fill(0)
    means = []
    for part in (one, other):
        means += [zeros if part.before is None else part.before, part.into]
    packing = []
    for index, (first, last) in enumerate(_shares(heads, crew.threads)):
        rows = workspace.array(f"rows {index}", (16, width // 2), np.int32)
        packing.append((qkv, factor, first, last, queries, keys, values, rows))
    crew.run(pack, packing)
    blocks = []
    for index, (first, last) in enumerate(_shares(filled // _BLOCK, crew.threads)):
        scratch = (
            workspace.array(f"logits {index}", (_BLOCK, filled), np.float32),
            workspace.array(f"weights {index}", (_BLOCK, filled), np.int16),
            workspace.array(f"mean {index}", (_BLOCK, filled), np.float32),
            workspace.array(f"sums {index}", (_BLOCK, width), np.float32),
        )
        blocks.append((queries, keys, values, tokens, first, last, starts, *means, out, SHAPES, *scratch))
    crew.run(attend, blocks)


def warm_up(announce: Callable[[str], None] = lambda line: None) -> None:
    """Compile, or load what was compiled, so that no image waits for it; a wrong result is an error.

    Args:
        announce: gets a line before anything is compiled; not called where the disk has all.

    Raises:
        RuntimeError: the kernels do not compute attention here.
    """
    from wsss_rt.crew import Crew

    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((35, 3 * 64), dtype=np.float32)
    queries, keys, values = np.split(qkv, 3, axis=1)
    powers = np.exp(queries @ keys.T / 8)
    wanted = powers / powers.sum(axis=1, keepdims=True)
    out, mean = np.empty((35, 64), np.float32), np.empty((35, 35), np.float32)
    with Crew(1) as crew, compiling_told(lambda: announce(COMPILING)):
        attention(qkv, out, [Part(0, 0, mean)], heads=1, scale=1 / 8, workspace=Workspace(), crew=crew)
    # 2 ** -7 for each of two rounded factors, of sums below 4
    if not (np.abs(out - wanted @ values).max() < 0.06 and np.abs(mean - wanted).max() < 0.02):
        raise RuntimeError("attention in tiles differs from plain attention")


_NO_PART = Part(0, 0, np.empty((0, 0), np.float32))


def _shares(count: int, most: int) -> list[tuple[int, int]]:
    """Up to ``most`` ranges of about the same length that make up ``range(count)``."""
    most = min(most, count)
    return [(count * index // most, count * (index + 1) // most) for index in range(most)]
