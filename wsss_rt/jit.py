"""How numba is used: compiled ahead of need, kept on the disk, without the interpreter lock.

With ``refine/lanes.py`` and ``engines/amx`` the only module that imports numba, so that the rest stays typed.
A kernel and what it calls stand in one file: numba looks for a change only in the file of the kernel that was
called.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numba
from numba.core import event, types
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])

# sums may be reordered and products fused; numba gives these to every instruction, an intrinsic's own too
_FAST = {"contract", "reassoc", "nsz", "arcp"}


def kernel(function: Function) -> Function:
    """Compile at the first call for a signature; later calls and other processes find it on the disk.

    For numbers only: callers refuse NaN.
    """
    return _compiled(function, _FAST | {"nnan"})


def kernel_with_nan(function: Function) -> Function:
    """The same for a kernel in which NaN has to stay NaN."""
    return _compiled(function, _FAST)


def _compiled(function: Function, fast: set[str]) -> Function:
    options = {"nogil": True, "error_model": "numpy", "fastmath": fast}
    try:
        return cast(Function, numba.njit(cache=True, **options)(function))
    except RuntimeError:
        # neither the package's folder nor the user's cache can be written: compiled in every process
        return cast(Function, numba.njit(**options)(function))


@intrinsic
def float_of_bits(typing_context: Any, bits: Any) -> Any:
    """The float32 whose bits an int32 holds."""
    from llvmlite import ir

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@contextmanager
def compiling_told(announce: Callable[[], None]) -> Iterator[None]:
    """Call ``announce`` once, before the first kernel that is compiled; not at all if the disk has all."""

    class Listener(event.Listener):
        def __init__(self) -> None:
            self.told = False
            self.lock = threading.Lock()

        def on_start(self, happening: Any) -> None:
            with self.lock:
                told, self.told = self.told, True
            if not told:
                announce()

        def on_end(self, happening: Any) -> None:
            pass

    with event.install_listener("numba:compile", Listener()):
        yield
