"""Triton kernels: the range of every map at the image's size, and then the mask, with nothing in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsss_rt.kernels._dispatch import interpreting
from wsss_rt.kernels._launch import wrap_triton
from wsss_rt.kernels.map_to_mask.taps import Taps

#: Scores are summed as whole multiples of this: integers, so that no order of programs changes a sum.
UNIT = 2.0**-30
# pixels of a tile; the interpreter takes about as long for a small one as for a large one
ROWS, COLS = (32, 64) if interpreting() else (8, 128)
WARPS = 8


@triton.jit
def _sample(
    tokens, row, row_weight, column, column_weight, rows, cols, height, width, grids,
    PEAK: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """One map at a tile of pixels: along rows, then down columns, tap by tap, grid by grid."""
    row_mask, col_mask = rows < height, cols < width
    inside = row_mask[:, None] & col_mask[None, :]
    total = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    for grid in range(0, grids):
        of_rows, of_cols = (grid * height + rows) * TAPS, (grid * width + cols) * TAPS
        of_grid = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
        for down in tl.static_range(TAPS):
            start = tl.load(row + of_rows + down, mask=row_mask, other=0)
            across = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
            for along in tl.static_range(TAPS):
                place = tl.load(column + of_cols + along, mask=col_mask, other=0)
                weight = tl.load(column_weight + of_cols + along, mask=col_mask, other=0.0)
                values = tl.load(tokens + start[:, None] + place[None, :], mask=inside, other=0.0)
                across += values * weight[None, :]
            of_grid += across * tl.load(row_weight + of_rows + down, mask=row_mask, other=0.0)[:, None]
        total += of_grid
    if PEAK:
        total = tl.maximum(total, 0.0)
    return total


@triton.jit
def _tile(height, width, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Which tile of which map this program has, and its rows and columns of pixels."""
    program = tl.program_id(0).to(tl.int64)
    across = tl.cdiv(width, COLS)
    tiles = across * tl.cdiv(height, ROWS)
    place = program % tiles
    rows = (place // across) * ROWS + tl.arange(0, ROWS)
    return program // tiles, rows, (place % across) * COLS + tl.arange(0, COLS)


@triton.jit
def _find_range(
    tokens, row, row_weight, column, column_weight, low, high, per_map, height, width, grids,
    PEAK: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Smallest and largest value of every map; a minimum and a maximum know no order."""
    which, rows, cols = _tile(height, width, ROWS, COLS)
    value = _sample(
        tokens + which * per_map, row, row_weight, column, column_weight, rows, cols, height, width, grids,
        PEAK, TAPS,
    )  # fmt: skip
    inside = (rows < height)[:, None] & (cols < width)[None, :]
    tl.atomic_max(high + which, tl.max(tl.where(inside, value, float("-inf"))), sem="relaxed")
    if not PEAK:
        tl.atomic_min(low + which, tl.min(tl.where(inside, value, float("inf"))), sem="relaxed")


@triton.jit
def _normalised(
    tokens, row, row_weight, column, column_weight, low, high, which, per_map, rows, cols, height, width,
    grids, epsilon, PEAK: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    value = _sample(
        tokens + which * per_map, row, row_weight, column, column_weight, rows, cols, height, width, grids,
        PEAK, TAPS,
    )  # fmt: skip
    least = tl.load(low + which)
    return tl.div_rn(value - least, tl.zeros_like(value) + (tl.load(high + which) - least + epsilon))


@triton.jit
def _write_planes(
    tokens, row, row_weight, column, column_weight, low, high, planes, per_map, height, width, grids, epsilon,
    PEAK: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The normalised maps themselves, for what needs all of them."""
    which, rows, cols = _tile(height, width, ROWS, COLS)
    value = _normalised(
        tokens, row, row_weight, column, column_weight, low, high, which, per_map, rows, cols, height, width,
        grids, epsilon, PEAK, TAPS,
    )  # fmt: skip
    inside = (rows < height)[:, None] & (cols < width)[None, :]
    tl.store(planes + which * height * width + rows[:, None] * width + cols[None, :], value, mask=inside)


@triton.jit
def _decide(
    source, row, row_weight, column, column_weight, low, high, classes, background, sure, mask, sums,
    per_map, count, height, width, grids, epsilon, constant, band_low, band_high, units,
    DENSE: tl.constexpr, PLANE: tl.constexpr, SURE: tl.constexpr, BAND: tl.constexpr, IGNORE: tl.constexpr,
    PEAK: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """A tile of the mask: each class competes in turn, and nothing but the winner is kept."""
    _, rows, cols = _tile(height, width, ROWS, COLS)
    inside = (rows < height)[:, None] & (cols < width)[None, :]
    pixels = rows[:, None] * width + cols[None, :]
    if PLANE:
        best = tl.load(background + pixels, mask=inside, other=0.0)
    else:
        best = tl.zeros((ROWS, COLS), tl.float32) + constant
    second = tl.zeros((ROWS, COLS), tl.float32)
    foreground = tl.zeros((ROWS, COLS), tl.float32)
    winner = tl.full((ROWS, COLS), -1, tl.int32)
    for which in range(0, count):
        far = tl.full((), 0, tl.int64) + which
        if DENSE:
            value = tl.load(source + far * height * width + pixels, mask=inside, other=0.0)
        else:
            value = _normalised(
                source, row, row_weight, column, column_weight, low, high, far, per_map, rows, cols, height,
                width, grids, epsilon, PEAK, TAPS,
            )  # fmt: skip
        winner = tl.where(value > best, which, winner)
        second = tl.maximum(second, tl.minimum(value, best))
        best = tl.maximum(best, value)
        foreground = tl.maximum(foreground, value)
    margin = tl.where(inside, best - second, 0.0).to(tl.float64) * units
    tl.atomic_add(sums, tl.sum(tl.floor(margin + 0.5).to(tl.int64)), sem="relaxed")
    weighed = tl.floor(best.to(tl.float64) * units + 0.5).to(tl.int64)
    for which in range(0, count):
        won = inside & (winner == which)
        pixels_won = tl.sum(won.to(tl.int64))
        if pixels_won > 0:
            tl.atomic_add(sums + 1 + which, tl.sum(tl.where(won, weighed, 0)), sem="relaxed")
            tl.atomic_add(sums + 1 + count + which, pixels_won, sem="relaxed")
    names = tl.load(classes + winner, mask=inside & (winner >= 0), other=-1)
    value = names + 1
    if SURE:
        certain = tl.load(sure + pixels, mask=inside, other=0) != 0
        value = tl.where(certain, 0, tl.where(value == 0, IGNORE, value))
    if BAND:
        value = tl.where((foreground >= band_low) & (foreground < band_high), IGNORE, value)
    tl.store(mask + pixels, value.to(mask.dtype.element_ty), mask=inside)


def _shape(taps: Taps) -> dict[str, int]:
    """Constants of a launch: four pixels a thread, two of bicubic maps; more did not fit into registers."""
    count = taps.row.shape[2]
    return {"TAPS": count, "ROWS": ROWS if count == 2 else ROWS // 2, "COLS": COLS, "num_warps": WARPS}


def _tiles(size: list[int], shape: dict[str, int]) -> int:
    return triton.cdiv(size[0], shape["ROWS"]) * triton.cdiv(size[1], shape["COLS"])


def _ranges(tokens: Tensor, taps: Taps, size: list[int], peak: bool) -> tuple[Tensor, Tensor]:
    """Smallest (0 for ``peak``) and largest value of every map, each (K,)."""
    maps, shape = tokens.shape[0], _shape(taps)
    low = torch.full((maps,), 0.0 if peak else float("inf"), device=tokens.device)
    high = torch.full((maps,), float("-inf"), device=tokens.device)
    if maps:
        wrap_triton(_find_range)[(maps * _tiles(size, shape),)](
            tokens, *taps, low, high, tokens.shape[1], *size, len(taps.row),
            PEAK=peak, **shape,
        )  # fmt: skip
    return low, high


def _launch_decide(
    source: Tensor, taps: Taps, low: Tensor, high: Tensor, classes: Tensor, background: Tensor | None,
    sure: Tensor | None, size: list[int], *, constant: float, band: list[float], epsilon: float, peak: bool,
    dense: bool, wide: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    count, shape = len(classes), _shape(taps)
    mask = torch.empty(size, dtype=torch.uint16 if wide else torch.uint8, device=source.device)
    sums = torch.zeros(1 + 2 * count, dtype=torch.int64, device=source.device)
    if not mask.numel():
        return mask, sums
    wrap_triton(_decide)[(_tiles(size, shape),)](
        source, *taps, low, high, classes,
        source if background is None else background, classes if sure is None else sure, mask, sums,
        source.shape[1], count, *size, len(taps.row), epsilon, constant, *(band or [0.0, 0.0]), 1 / UNIT,
        DENSE=dense, PLANE=background is not None, SURE=sure is not None, BAND=bool(band),
        IGNORE=65_535 if wide else 255, PEAK=peak, **shape,
    )  # fmt: skip
    return mask, sums


@torch.library.triton_op("wsss_rt::map_to_mask", mutates_args=())
def map_to_mask(
    tokens: Tensor, row: Tensor, row_weight: Tensor, column: Tensor, column_weight: Tensor, classes: Tensor,
    size: list[int], constant: float, band: list[float], epsilon: float, peak: bool, wide: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The operator; ``tokens`` (K, values) float32, ``classes`` (K,) int32. Sums are multiples of UNIT."""
    taps = Taps(row, row_weight, column, column_weight)
    low, high = _ranges(tokens, taps, size, peak)
    return _launch_decide(
        tokens, taps, low, high, classes, None, None, size,
        constant=constant, band=band, epsilon=epsilon, peak=peak, dense=False, wide=wide,
    )  # fmt: skip


@torch.library.triton_op("wsss_rt::map_planes", mutates_args=())
def map_planes(
    tokens: Tensor, row: Tensor, row_weight: Tensor, column: Tensor, column_weight: Tensor, size: list[int],
    epsilon: float, peak: bool,
) -> Tensor:  # fmt: skip
    """The operator; (K, H, W) float32."""
    return _launch_planes(tokens, Taps(row, row_weight, column, column_weight), size, epsilon, peak)


def _launch_planes(tokens: Tensor, taps: Taps, size: list[int], epsilon: float, peak: bool) -> Tensor:
    low, high = _ranges(tokens, taps, size, peak)
    planes, shape = torch.empty((tokens.shape[0], *size), device=tokens.device), _shape(taps)
    if planes.numel():
        wrap_triton(_write_planes)[(len(planes) * _tiles(size, shape),)](
            tokens, *taps, low, high, planes, tokens.shape[1], *size, len(taps.row), epsilon,
            PEAK=peak, **shape,
        )  # fmt: skip
    return planes


@torch.library.triton_op("wsss_rt::planes_to_mask", mutates_args=())
def planes_to_mask(
    planes: Tensor, classes: Tensor, background: Tensor | None, sure: Tensor | None, constant: float,
    band: list[float], wide: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The operator; ``planes`` (K, H, W) and ``background`` (H, W) float32, ``sure`` (H, W) uint8."""
    nothing = planes.new_zeros((1, 1, 2))
    return _launch_decide(
        planes, Taps(nothing, nothing, nothing, nothing), planes, planes, classes, background, sure,
        list(planes.shape[1:]),
        constant=constant, band=band, epsilon=0.0, peak=False, dense=True, wide=wide,
    )  # fmt: skip


@map_to_mask.register_fake
def _(
    tokens: Tensor, row: Tensor, row_weight: Tensor, column: Tensor, column_weight: Tensor, classes: Tensor,
    size: list[int], constant: float, band: list[float], epsilon: float, peak: bool, wide: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    mask = tokens.new_empty(size, dtype=torch.uint16 if wide else torch.uint8)
    return mask, tokens.new_empty(1 + 2 * len(classes), dtype=torch.int64)


@map_planes.register_fake
def _(
    tokens: Tensor, row: Tensor, row_weight: Tensor, column: Tensor, column_weight: Tensor, size: list[int],
    epsilon: float, peak: bool,
) -> Tensor:  # fmt: skip
    return tokens.new_empty((tokens.shape[0], *size))


@planes_to_mask.register_fake
def _(
    planes: Tensor, classes: Tensor, background: Tensor | None, sure: Tensor | None, constant: float,
    band: list[float], wide: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    mask = planes.new_empty(planes.shape[1:], dtype=torch.uint16 if wide else torch.uint8)
    return mask, planes.new_empty(1 + 2 * len(classes), dtype=torch.int64)


def _example(taps: int, *, dense: bool = False) -> Callable[[], Any]:
    """A photograph of 500 x 375 px with three classes, on the meta device."""

    def call() -> None:
        size, kinds = [375, 500], (torch.int32, torch.float32) * 2
        sides = [torch.empty((1, size[at // 2], taps), dtype=kinds[at], device="meta") for at in range(4)]
        tokens, given = torch.empty((3, 713), device="meta"), Taps(*sides)
        classes = torch.empty(3, dtype=torch.int32, device="meta")
        rule: dict[str, Any] = {"constant": 0.4, "band": [0.3, 0.5], "epsilon": 1e-8, "wide": False}
        if dense:
            planes = _launch_planes(tokens, given, size, 1e-8, peak=True)
            sure = torch.empty(size, dtype=torch.uint8, device="meta")
            _launch_decide(
                planes, given, planes, planes, classes, planes[0], sure, size, peak=False, dense=True, **rule
            )
            return
        low, high = _ranges(tokens, given, size, peak=False)
        _launch_decide(tokens, given, low, high, classes, None, None, size, peak=False, dense=False, **rule)

    return call


#: Calls as ``label`` makes them, for compiling without a GPU.
EXAMPLES: dict[str, Callable[[], Any]] = {
    "bilinear": _example(2),
    "bicubic": _example(4),
    "planes, sure background": _example(2, dense=True),
}
