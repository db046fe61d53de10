"""Four float32 side by side in a register, for kernels: numba by itself keeps four scalars apart."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, models, register_model

_VECTOR = ir.VectorType(ir.FloatType(), 4)
# an array's values begin anywhere that a float may
_ALIGNMENT = 4


class Lanes(types.Type):
    """Numba's type of four float32; lives in registers only."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


lanes = Lanes()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _VECTOR)


@intrinsic
def load(typing_context: Any, array: Any, at: Any) -> Any:
    """``array[at : at + 4]`` of a flat float32 array; ``at`` >= 0, not checked."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_place(context, builder, signature, arguments), align=_ALIGNMENT)

    return lanes(array, at), generate


@intrinsic
def store(typing_context: Any, array: Any, at: Any, value: Any) -> Any:
    """``array[at : at + 4] = value``, as :func:`load`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _place(context, builder, signature, arguments), align=_ALIGNMENT)
        return context.get_dummy_value()

    return types.void(array, at, value), generate


@intrinsic
def spread(typing_context: Any, value: Any) -> Any:
    """A float32 in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _spread(builder, arguments[0])

    return lanes(types.float32), generate


@intrinsic
def add_scaled(typing_context: Any, value: Any, factor: Any, other: Any) -> Any:
    """``value + factor * other``, with a float32 as factor."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, factor, other = arguments
        fuse = ("contract",)
        product = builder.fmul(_spread(builder, factor), other, flags=fuse)
        return builder.fadd(value, product, flags=fuse)

    return lanes(lanes, types.float32, lanes), generate


def _place(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Pointer to four lanes of an array."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    at = context.cast(builder, arguments[1], signature.args[1], types.uintp)
    return builder.bitcast(builder.gep(array.data, [at]), _VECTOR.as_pointer())


def _spread(builder: Any, value: Any) -> Any:
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), 4), [0] * 4)
    return builder.shuffle_vector(first, first, zeros)
