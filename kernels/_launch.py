"""What every Triton launch of this package needs. Imports Triton: only kernels' own modules import this."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from wsss_rt.kernels._dispatch import interpreting

LOG2_E = math.log2(math.e)

#: Takes launches in place of a GPU, see :func:`recording`: kernel, grid, arguments by position and by name.
Recorder = Callable[[Any, Any, tuple[Any, ...], dict[str, Any]], None]
_recorder: Recorder | None = None


def wrap_triton(kernel: Any) -> Any:
    """``torch.library.wrap_triton`` of a compiled kernel; an interpreted one can't be traced, and stays."""
    if _recorder is not None:
        return _Recorded(kernel, _recorder)
    return torch.library.wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Hand launches to ``recorder`` for a while, and run none: what a call would launch is then known."""
    global _recorder
    kept, _recorder = _recorder, recorder
    try:
        yield
    finally:
        _recorder = kept


class _Recorded:
    def __init__(self, kernel: Any, recorder: Recorder) -> None:
        self._kernel, self._recorder = kernel, recorder

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **named: self._recorder(self._kernel, grid, args, named)


def dot_precision(*tensors: Tensor) -> str:
    """For float32 products what torch's own setting says; it has no meaning for narrower types."""
    exact = torch.get_float32_matmul_precision() == "highest"
    return "ieee" if exact or tensors[0].dtype != torch.float32 else "tf32"


def widen(tensor: Tensor) -> bool:
    """Whether the kernel must multiply and store this type as float32.

    Triton's interpreter multiplies bfloat16 as if it were integers, and cuts where hardware rounds.
    """
    return tensor.dtype == torch.bfloat16 and interpreting()


def meta_heads(batch: int, tokens: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, 384 / d, T, d) of a packed projection, without data: for examples."""
    packed = torch.empty((batch, tokens, 3, 384 // dim, dim), dtype=dtype, device="meta")
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def dense_rows(*tensors: Tensor) -> list[Tensor]:
    """The tensors, copied where their last axis is strided."""
    return [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in tensors]
