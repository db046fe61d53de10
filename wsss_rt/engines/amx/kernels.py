"""The kernels of attention in AMX tiles: operands in the order of tiles, and blocks of queries."""

from __future__ import annotations

from typing import Any

import numpy as np

from wsss_rt.engines.amx.registers import (
    add,
    address,
    larger,
    largest,
    load,
    load_first,
    multiply,
    power_of_two,
    spread,
    store,
    store_bfloat16,
    store_first,
    store_pairs,
    subtract,
    total,
    turn,
)
from wsss_rt.engines.amx.tiles import (
    clearing,
    loading,
    multiplying,
    set_tiles,
    shapes_of_tiles,
    storing,
)
from wsss_rt.jit import kernel_with_nan

# of keys that do not exist: the power of it is 0, and a difference of two is a number
_NOTHING = np.float32(-1e30)

# logits: tiles 0 and 1 are 32 queries by 16 keys; 2 and 3 the queries' first 32 channels, 4 and 5 their
# last; 6 and 7 the keys'. Weighted sums: 0 to 3 are 32 queries by 32 channels; 4 and 5 the weights, 6 and 7
# the values
_clear_0, _clear_1, _clear_2, _clear_3 = (clearing(tile) for tile in range(4))
_write_0, _write_1, _write_2, _write_3 = (storing(tile) for tile in range(4))
_read_2, _read_3, _read_4, _read_5, _read_6, _read_7 = (loading(tile) for tile in range(2, 8))
_logits_low_0, _logits_low_1 = multiplying(0, 2, 6), multiplying(1, 3, 6)
_logits_high_0, _logits_high_1 = multiplying(0, 4, 7), multiplying(1, 5, 7)
_sums_0, _sums_1 = multiplying(0, 4, 6), multiplying(1, 5, 6)
_sums_2, _sums_3 = multiplying(2, 4, 7), multiplying(3, 5, 7)


@kernel_with_nan
def pack(
    qkv: Any, scale: Any, first: Any, last: Any, queries: Any, keys: Any, values: Any, rows: Any
) -> None:
    """Heads ``first`` up to ``last`` in the order that tiles are read in, as bfloat16.

    Args:
        qkv: (T, 3 * H * d) float32: all heads' queries, then keys, then values.
        scale: of the queries.
        queries: (H, T', d) int16, T' the next multiple of 32; zeros behind the last.
        keys: (H, T'/16, d/2, 16) int32: pairs of channels of 16 keys.
        values: (H, d/16, T'/2, 16) int32: pairs of keys of 16 channels.
        rows: (16, d/2) int32 to work in.
    """
    tokens = qkv.shape[0]
    heads, filled, width = queries.shape
    line = 4 * qkv.shape[1]
    factor, nothing = spread(np.float32(scale)), spread(np.float32(0))
    at, to_queries, to_keys, to_values, to_rows = (
        address(qkv),
        address(queries),
        address(keys),
        address(values),
        address(rows),
    )
    for head in range(first, last):
        for token in range(filled):
            source = at + token * line + head * width * 4
            target = to_queries + (head * filled + token) * width * 2
            for channel in range(0, width, 16):
                part = nothing
                if token < tokens:
                    part = multiply(load(source + channel * 4), factor)
                store_bfloat16(target + channel * 2, part)
        for group in range(filled // 16):
            for within in range(16):
                token = group * 16 + within
                source = at + token * line + (heads + head) * width * 4
                for channel in range(0, width, 16):
                    part = load(source + channel * 4) if token < tokens else nothing
                    store_bfloat16(to_rows + within * width * 2 + channel * 2, part)
            target = to_keys + (head * (filled // 16) + group) * width * 32
            for half in range(width // 32):
                turn(to_rows + half * 64, width * 2, target + half * 1024)
        for pair in range(filled // 2):
            source = at + 2 * pair * line + (2 * heads + head) * width * 4
            for channel in range(0, width, 16):
                one = load(source + channel * 4) if 2 * pair < tokens else nothing
                other = load(source + line + channel * 4) if 2 * pair + 1 < tokens else nothing
                target = to_values + ((head * (width // 16) + channel // 16) * (filled // 2) + pair) * 64
                store_pairs(target, one, other)


@kernel_with_nan
def _give(source: Any, before: Any, target: Any, columns: Any, heads: Any) -> None:
    """Write a row of ``before`` and the mean: of the sum over heads that begins at ``source``."""
    share = spread(np.float32(1.0 / heads))
    for at in range(0, columns - 15, 16):
        mean = multiply(load(source + at * 4), share)
        store(target + at * 4, add(load(before + at * 4), mean))
    for at in range(columns & ~15, columns):
        mean = multiply(spread(load_first(source + at * 4)), share)
        store_first(target + at * 4, add(spread(load_first(before + at * 4)), mean))


@kernel_with_nan
def attend(
    queries: Any,
    keys: Any,
    values: Any,
    tokens: Any,
    first: Any,
    last: Any,
    windows: Any,
    one_before: Any,
    one: Any,
    other_before: Any,
    other: Any,
    out: Any,
    shapes: Any,
    logits: Any,
    weights: Any,
    mean: Any,
    sums: Any,
) -> None:
    """Blocks ``first`` up to ``last`` of 32 queries.

    Args:
        queries, keys, values: as :func:`pack` leaves them.
        tokens: T.
        windows: (2, 2) int64: the first row and column of the head mean that ``one`` and ``other`` begin at.
        one_before: what is added to ``one``: as large, or one row for all.
        one: (rows, columns) float32, a part of the head mean; no rows where it is not wanted.
        other_before, other: as ``one``.
        out: (T, H * d) float32.
        shapes: of the tiles, 64 bytes.
        logits, weights, mean, sums: to work in: (32, T') float32, int16, float32, and (32, d) float32.
    """
    heads, filled, width = queries.shape
    groups = filled // 16
    from_queries, from_keys, from_values = address(queries), address(keys), address(values)
    at_logits, at_weights, at_mean, at_sums = address(logits), address(weights), address(mean), address(sums)
    wide, narrow = 4 * filled, 2 * filled
    nothing = spread(np.float32(0))
    # whoever used this thread's tiles before may count on their shapes
    lent = np.empty(64, np.uint8)
    shapes_of_tiles(address(lent))
    set_tiles(address(shapes))
    for block in range(first, last):
        start = block * 32
        count = min(32, tokens - start)
        for head in range(heads):
            source = from_queries + (head * filled + start) * width * 2
            _read_2(source, width * 2)
            _read_3(source + 16 * width * 2, width * 2)
            if width > 32:
                _read_4(source + 64, width * 2)
                _read_5(source + 16 * width * 2 + 64, width * 2)
            source = from_keys + head * groups * width * 32
            for group in range(groups):
                _clear_0()
                _clear_1()
                _read_6(source, 64)
                _logits_low_0()
                _logits_low_1()
                if width > 32:
                    _read_7(source + 1024, 64)
                    _logits_high_0()
                    _logits_high_1()
                _write_0(at_logits + group * 64, wide)
                _write_1(at_logits + group * 64 + 16 * wide, wide)
                source += width * 32
            for row in range(32):
                line, target, kept = at_logits + row * wide, at_weights + row * narrow, at_mean + row * wide
                if row >= count:
                    for group in range(groups):
                        store_bfloat16(target + group * 32, nothing)
                    continue
                for key in range(tokens, filled):
                    logits[row, key] = _NOTHING
                peak, peak_other = load(line), load(line + 64)
                for group in range(2, groups, 2):
                    peak = larger(peak, load(line + group * 64))
                    peak_other = larger(peak_other, load(line + group * 64 + 64))
                peak = spread(largest(larger(peak, peak_other)))
                mass, mass_other = nothing, nothing
                for group in range(0, groups, 2):
                    power = power_of_two(subtract(load(line + group * 64), peak))
                    power_other = power_of_two(subtract(load(line + group * 64 + 64), peak))
                    store(line + group * 64, power)
                    store(line + group * 64 + 64, power_other)
                    mass = add(mass, power)
                    mass_other = add(mass_other, power_other)
                share = spread(np.float32(1) / total(add(mass, mass_other)))
                query = start + row
                inside = query >= windows[0, 0] and query < windows[0, 0] + one.shape[0]
                inside |= query >= windows[1, 0] and query < windows[1, 0] + other.shape[0]
                if not inside:
                    for group in range(groups):
                        store_bfloat16(target + group * 32, multiply(load(line + group * 64), share))
                elif head == 0:
                    for group in range(groups):
                        weight = multiply(load(line + group * 64), share)
                        store_bfloat16(target + group * 32, weight)
                        store(kept + group * 64, weight)
                else:
                    for group in range(groups):
                        weight = multiply(load(line + group * 64), share)
                        store_bfloat16(target + group * 32, weight)
                        store(kept + group * 64, add(load(kept + group * 64), weight))
            for part in range(width // 32):
                _clear_0()
                _clear_1()
                _clear_2()
                _clear_3()
                source = from_values + (head * (width // 16) + part * 2) * filled * 32
                for step in range(filled // 32):
                    _read_4(at_weights + step * 64, narrow)
                    _read_5(at_weights + step * 64 + 16 * narrow, narrow)
                    _read_6(source + step * 1024, 64)
                    _read_7(source + filled * 32 + step * 1024, 64)
                    _sums_0()
                    _sums_1()
                    _sums_2()
                    _sums_3()
                target = at_sums + part * 128
                _write_0(target, width * 4)
                _write_1(target + 16 * width * 4, width * 4)
                _write_2(target + 64, width * 4)
                _write_3(target + 16 * width * 4 + 64, width * 4)
            for row in range(count):
                for channel in range(width):
                    out[start + row, head * width + channel] = sums[row, channel]
        for row in range(count):
            query = start + row
            source = at_mean + row * wide
            if query >= windows[0, 0] and query < windows[0, 0] + one.shape[0]:
                columns = one.shape[1]
                line = (query - windows[0, 0]) * columns * 4
                # without anything before, zeros stand in for one row of it
                before = address(one_before) + (line if one_before.shape[0] > 1 else 0)
                _give(source + windows[0, 1] * 4, before, address(one) + line, columns, heads)
            if query >= windows[1, 0] and query < windows[1, 0] + other.shape[0]:
                columns = other.shape[1]
                line = (query - windows[1, 0]) * columns * 4
                # without anything before, zeros stand in for one row of it
                before = address(other_before) + (line if other_before.shape[0] > 1 else 0)
                _give(source + windows[1, 1] * 4, before, address(other) + line, columns, heads)
    set_tiles(address(lent))
