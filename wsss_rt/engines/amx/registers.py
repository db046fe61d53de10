"""Sixteen float32 side by side in a register of AVX-512, for kernels.

Addresses are bytes from :func:`address`; nothing checks them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

#: float32 in a register.
WIDTH = 16

_FLOAT = ir.FloatType()
_HALF = ir.IntType(16)
_WORD = ir.IntType(32)
#: LLVM's type of an address.
LONG = ir.IntType(64)
_FLOATS = ir.VectorType(_FLOAT, WIDTH)
_WORDS = ir.VectorType(_WORD, WIDTH)
_HALVES = ir.VectorType(_HALF, WIDTH)
# sums may be reordered; what is not a number has to stay so, or a broken result would look like a mask
_FAST = ("contract", "reassoc", "nsz", "arcp")
# of the polynomial in f that is 2^f within 4e-6 for |f| <= 1/2: a bfloat16 keeps no more than 4e-3
_POWERS = (1.0, 0.693147182, 0.240226462, 0.0555041, 0.00967, 0.00133)
_ALL = ir.Constant(_HALF, -1)
# of an instruction's own rounding: to the nearest; leave the mode as it is
_NEAREST = ir.Constant(_WORD, 8)
_CURRENT = ir.Constant(_WORD, 4)


class Floats(types.Type):
    """Numba's type of sixteen float32; lives in registers only."""

    def __init__(self) -> None:
        super().__init__(name="Floats")


floats = Floats()


@register_model(Floats)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _FLOATS)


@intrinsic
def address(typing_context: Any, array: Any) -> Any:
    """Of an array's first value."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(
            context.make_array(signature.args[0])(context, builder, arguments[0]).data, LONG
        )

    return types.int64(array), generate


@intrinsic
def load(typing_context: Any, at: Any) -> Any:
    """Sixteen float32, aligned or not."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(pointer_to(builder, arguments[0], _FLOATS), align=4)

    return floats(types.int64), generate


@intrinsic
def store(typing_context: Any, at: Any, values: Any) -> Any:
    """Sixteen float32, aligned or not."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], pointer_to(builder, arguments[0], _FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, floats), generate


@intrinsic
def load_first(typing_context: Any, at: Any) -> Any:
    """One float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(pointer_to(builder, arguments[0], _FLOAT), align=4)

    return types.float32(types.int64), generate


@intrinsic
def store_first(typing_context: Any, at: Any, values: Any) -> Any:
    """Of sixteen float32 the first."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.extract_element(arguments[1], ir.Constant(_WORD, 0))
        builder.store(value, pointer_to(builder, arguments[0], _FLOAT), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, floats), generate


@intrinsic
def store_bfloat16(typing_context: Any, at: Any, values: Any) -> Any:
    """Sixteen numbers as bfloat16, rounded to the nearest, halves away from 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        high = builder.lshr(_rounded(builder, arguments[1]), _same(_WORDS, 16))
        pointer = pointer_to(builder, arguments[0], _HALVES)
        builder.store(builder.trunc(high, _HALVES), pointer, align=2)
        return context.get_dummy_value()

    return types.void(types.int64, floats), generate


@intrinsic
def store_pairs(typing_context: Any, at: Any, first: Any, second: Any) -> Any:
    """Sixteen pairs of bfloat16, one number of each argument: as the second factor of a tile product."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        low = builder.lshr(_rounded(builder, arguments[1]), _same(_WORDS, 16))
        high = builder.and_(_rounded(builder, arguments[2]), _same(_WORDS, -65536))
        builder.store(builder.or_(low, high), pointer_to(builder, arguments[0], _WORDS), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, floats, floats), generate


@intrinsic
def turn(typing_context: Any, source: Any, stride: Any, target: Any) -> Any:
    """Transpose 16 by 16 words of 32 bits.

    Args:
        source: of the first row.
        stride: bytes from row to row there.
        target: of 16 rows of 64 bytes.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, stride, target = arguments
        rows = []
        for index in range(WIDTH):
            at = builder.add(source, builder.mul(stride, ir.Constant(LONG, index)))
            rows.append(builder.load(pointer_to(builder, at, _WORDS), align=4))
        for step in (1, 2, 4, 8):
            rows = _exchange(builder, rows, step)
        for index, row in enumerate(rows):
            at = builder.add(target, ir.Constant(LONG, 4 * WIDTH * index))
            builder.store(row, pointer_to(builder, at, _WORDS), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def spread(typing_context: Any, value: Any) -> Any:
    """A float32 in all places."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        first = builder.insert_element(undefined, arguments[0], ir.Constant(_WORD, 0))
        return builder.shuffle_vector(first, undefined, _same(_WORDS, 0))

    return floats(types.float32), generate


def _pairwise(operation: Callable[[Any, Any, Any], Any], what: str) -> Any:
    def combine(typing_context: Any, one: Any, other: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return operation(builder, arguments[0], arguments[1])

        return floats(floats, floats), generate

    combine.__doc__ = what
    return intrinsic(combine)


add = _pairwise(lambda builder, one, other: builder.fadd(one, other, flags=_FAST), "Sums.")
subtract = _pairwise(lambda builder, one, other: builder.fsub(one, other, flags=_FAST), "Differences.")
multiply = _pairwise(lambda builder, one, other: builder.fmul(one, other, flags=_FAST), "Products.")
larger = _pairwise(
    lambda builder, one, other: builder.select(builder.fcmp_ordered(">", one, other), one, other),
    "Of each place the larger number.",
)


@intrinsic
def largest(typing_context: Any, values: Any) -> Any:
    """Of all places."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        reduce = function_of(builder, "llvm.vector.reduce.fmax.v16f32", _FLOAT, [_FLOATS])
        return builder.call(reduce, arguments)

    return types.float32(floats), generate


@intrinsic
def total(typing_context: Any, values: Any) -> Any:
    """Of all places."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        reduce = function_of(builder, "llvm.vector.reduce.fadd.v16f32", _FLOAT, [_FLOAT, _FLOATS])
        return builder.call(reduce, [ir.Constant(_FLOAT, 0.0), arguments[0]], fastmath=_FAST)

    return types.float32(floats), generate


@intrinsic
def power_of_two(typing_context: Any, values: Any) -> Any:
    """``2 ** x`` within 4e-6 of itself; 0 far below, infinite far above."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = arguments[0]
        operands = [_FLOATS, _WORD, _FLOATS, _HALF, _WORD]
        nearest = function_of(builder, "llvm.x86.avx512.mask.rndscale.ps.512", _FLOATS, operands)
        whole = builder.call(nearest, [value, _NEAREST, value, _ALL, _CURRENT])
        rest = builder.fsub(value, whole, flags=("contract",))
        power = _same(_FLOATS, _POWERS[-1])
        for factor in _POWERS[-2::-1]:
            product = builder.fmul(power, rest, flags=("contract",))
            power = builder.fadd(product, _same(_FLOATS, factor), flags=("contract",))
        operands = [_FLOATS, _FLOATS, _FLOATS, _HALF, _WORD]
        scale = function_of(builder, "llvm.x86.avx512.mask.scalef.ps.512", _FLOATS, operands)
        return builder.call(scale, [power, whole, power, _ALL, _CURRENT])

    return floats(floats), generate


def function_of(builder: Any, name: str, result: Any, operands: list[Any]) -> Any:
    """An instruction of LLVM, for code that is being made."""
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, operands), name)


def pointer_to(builder: Any, at: Any, kind: Any) -> Any:
    """An address as LLVM's pointer."""
    return builder.inttoptr(at, kind.as_pointer())


def _same(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * WIDTH)


def _rounded(builder: Any, values: Any) -> Any:
    """Words whose upper halves are the bfloat16."""
    words = builder.bitcast(values, _WORDS)
    # what is not a number can have all bits set, and would become 0
    none = builder.fcmp_unordered("uno", values, values)
    return builder.select(none, words, builder.add(words, _same(_WORDS, 0x8000)))


def _exchange(builder: Any, rows: list[Any], step: int) -> list[Any]:
    """One stage of a transposition: squares of ``step`` by ``step`` change places across the diagonal."""
    # places of the second operand count on from those of the first
    above = [place if not place & step else place - step + WIDTH for place in range(WIDTH)]
    below = [place + step if not place & step else place + WIDTH for place in range(WIDTH)]
    changed = list(rows)
    for index in range(WIDTH):
        if not index & step:
            pair = rows[index], rows[index + step]
            changed[index] = builder.shuffle_vector(*pair, ir.Constant(_WORDS, above))
            changed[index + step] = builder.shuffle_vector(*pair, ir.Constant(_WORDS, below))
    return changed
