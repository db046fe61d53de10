"""The part of TensorRT's plugin interface that is used, as strict as the real one (of version 11.4).

Symbolic expressions here keep what they are made of, and have a value once the sizes are known.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

_LAUNCH = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")


class SymInt32:
    """A whole number, known or not."""

    def __init__(self, value: Any) -> None:
        if isinstance(value, SymInt32):
            self.evaluate = value.evaluate
            self.constant = value.constant
        elif type(value) is int:
            self.evaluate = lambda sizes: value
            self.constant = value
        else:
            raise ValueError(f"Unsupported type: '{type(value)}'")

    constant: int | None = None
    evaluate: Callable[[Mapping[str, int]], int]

    @classmethod
    def named(cls, name: str) -> SymInt32:
        """A size that is known at run time."""
        made = cls(0)
        made.evaluate, made.constant = (lambda sizes: sizes[name]), None
        return made

    def constant_value(self) -> int:
        """The number, if it is one."""
        if self.constant is None:
            raise RuntimeError("Not accessible for non-constant integer expressions.")
        return self.constant

    def _with(self, other: Any, operation: Callable[[int, int], int]) -> SymInt32:
        other = other if isinstance(other, SymInt32) else SymInt32(other)
        made = SymInt32(0)
        mine, its = self.evaluate, other.evaluate
        made.evaluate = lambda sizes: operation(mine(sizes), its(sizes))
        made.constant = None
        if self.constant is not None and other.constant is not None:
            made.constant = operation(self.constant, other.constant)
        return made

    def __add__(self, other: Any) -> SymInt32:
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other: Any) -> SymInt32:
        return self._with(other, lambda a, b: a - b)

    def __mul__(self, other: Any) -> SymInt32:
        return self._with(other, lambda a, b: a * b)

    def __bool__(self) -> bool:
        raise RuntimeError("Cannot evaluate symbolic expression as boolean.")


class TensorDesc:
    """Shape and type of a tensor."""

    def __init__(self, shape_expr: tuple[Any, ...], dtype: str) -> None:
        self.shape_expr = [size if isinstance(size, SymInt32) else SymInt32(size) for size in shape_expr]
        self.dtype = dtype

    def like(self) -> TensorDesc:
        """Another of the same shape and type."""
        return TensorDesc(tuple(self.shape_expr), self.dtype)


class SymIntExprs(list[Any]):
    """A sequence of numbers."""

    @classmethod
    def from_tuple(cls, values: Any) -> SymIntExprs:
        """As the real one."""
        return cls(values)


class KernelLaunchParams:
    """Grid, block and shared memory."""

    def __init__(self) -> None:
        for name in _LAUNCH:
            setattr(self, name, 0 if name == "shared_mem" else 1)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _LAUNCH:
            raise AttributeError(f"KernelLaunchParams object has no attribute '{name}'")
        self.__dict__[name] = SymInt32(value)


def cdiv(first: Any, second: Any) -> SymInt32:
    """Ceiling division; of two plain numbers it is an error, as in the real one."""
    if isinstance(first, int) and isinstance(second, int):
        raise ValueError("Both arguments cannot be 'int's")
    first = first if isinstance(first, SymInt32) else SymInt32(first)
    return first._with(second, lambda a, b: -(-a // b))


class FakeTensorRT:
    """``tensorrt`` and ``tensorrt.plugin`` in one, which keep what was registered."""

    float16, bfloat16, float32 = "float16", "bfloat16", "float32"
    TensorDesc, SymInt32, SymIntExprs = TensorDesc, SymInt32, SymIntExprs
    KernelLaunchParams = KernelLaunchParams
    cdiv = staticmethod(cdiv)

    def __init__(self) -> None:
        self.described: dict[str, Callable[..., Any]] = {}
        self.implemented: dict[str, Callable[..., Any]] = {}

    @staticmethod
    def from_shape_expr(shape: tuple[Any, ...], dtype: str) -> TensorDesc:
        """As the real one."""
        return TensorDesc(shape, dtype)

    def register(self, identifier: str) -> Callable[..., Any]:
        """Takes a description whose signature says what it takes."""

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            seen_attribute = False
            for name, parameter in inspect.signature(function).parameters.items():
                if (
                    parameter.annotation is inspect.Parameter.empty
                    or parameter.default is not parameter.empty
                ):
                    raise ValueError(
                        f"Argument {name} does not have a type annotation, or has a default value."
                    )
                if parameter.annotation is TensorDesc:
                    if seen_attribute:
                        raise ValueError("TensorDescs args and attribute args cannot be interspersed.")
                elif parameter.annotation in (int, float, str, bool, bytes):
                    seen_attribute = True
                else:
                    raise ValueError(f"Attribute '{name}' is not a supported serializable type.")
            returned = inspect.signature(function).return_annotation
            if typing.get_origin(returned) is not tuple or set(typing.get_args(returned)) != {TensorDesc}:
                raise ValueError(f"Return annotation is {returned}.")
            self.described[identifier] = function
            return function

        return decorate

    def aot_impl(self, identifier: str) -> Callable[..., Any]:
        """Takes an implementation whose signature is that of the description, with outputs and a tactic."""

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            expected = [*inspect.signature(self.described[identifier]).parameters, "outputs", "tactic"]
            signature = inspect.signature(function)
            if list(signature.parameters) != expected:
                raise ValueError(
                    f"Signature of the aot_impl function '{signature}' does not match {expected}"
                )
            kinds = typing.get_args(signature.return_annotation)
            if len(kinds) != 4 or any(
                typing.get_origin(kind) not in (typing.Union, types.UnionType) for kind in kinds[:2]
            ):
                raise ValueError(f"Return annotation is {signature.return_annotation}.")
            if kinds[2:] != (KernelLaunchParams, SymIntExprs):
                raise ValueError(f"Return annotation is {signature.return_annotation}.")
            self.implemented[identifier] = function
            return function

        return decorate
