"""Tiles of processors with AMX, for kernels: matrix products of bfloat16.

A tile holds 16 rows of 64 bytes: 16 by 16 float32, or 16 by 32 bfloat16. There are eight. A tile's number is
part of an instruction, so each function that names tiles is made for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from wsss_rt.engines.amx.registers import LONG, function_of, pointer_to

_BYTE = ir.IntType(8)

#: Of eight whole tiles, as the processor reads it: a palette, bytes of a row, rows.
SHAPES = np.zeros(64, np.uint8)
SHAPES[0] = 1
SHAPES[16:32].view(np.uint16)[:] = 64
SHAPES[48:56] = 16


@intrinsic
def set_tiles(typing_context: Any, at: Any) -> Any:
    """Give all tiles the shapes that stand in 64 bytes, and zeros."""
    return _configuring("llvm.x86.ldtilecfg")


@intrinsic
def shapes_of_tiles(typing_context: Any, at: Any) -> Any:
    """Write the tiles' shapes into 64 bytes."""
    return _configuring("llvm.x86.sttilecfg")


def clearing(tile: int) -> Any:
    """A function that fills a tile with zeros."""

    def clear(typing_context: Any) -> Any:
        return types.void(), _tile_call("llvm.x86.tilezero", [tile])

    return intrinsic(clear)


def loading(tile: int) -> Any:
    """A function of an address and of the bytes from row to row that reads a tile."""

    def read(typing_context: Any, at: Any, stride: Any) -> Any:
        return types.void(types.int64, types.int64), _tile_call("llvm.x86.tileloadd64", [tile])

    return intrinsic(read)


def storing(tile: int) -> Any:
    """A function of an address and of the bytes from row to row that writes a tile."""

    def write(typing_context: Any, at: Any, stride: Any) -> Any:
        return types.void(types.int64, types.int64), _tile_call("llvm.x86.tilestored64", [tile])

    return intrinsic(write)


def multiplying(into: int, first: int, second: int) -> Any:
    """A function that adds the product of two tiles of bfloat16 to a tile of float32.

    Row ``i`` of the second holds, for each column, its numbers ``2 i`` and ``2 i + 1`` side by side.
    """

    def product(typing_context: Any) -> Any:
        return types.void(), _tile_call("llvm.x86.tdpbf16ps", [into, first, second])

    return intrinsic(product)


def _configuring(name: str) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = function_of(builder, name, ir.VoidType(), [_BYTE.as_pointer()])
        builder.call(function, [pointer_to(builder, arguments[0], _BYTE)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _tile_call(name: str, tiles: list[int]) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds: list[Any] = [_BYTE] * len(tiles)
        values = [ir.Constant(_BYTE, tile) for tile in tiles]
        if arguments:
            kinds += [_BYTE.as_pointer(), LONG]
            values += [pointer_to(builder, arguments[0], _BYTE), arguments[1]]
        builder.call(function_of(builder, name, ir.VoidType(), kinds), values)
        return context.get_dummy_value()

    return generate
