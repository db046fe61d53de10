"""What every Triton launch of this package needs. Imports Triton: only kernels' own modules import this."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

from wsss_rt.kernels._dispatch import interpreting

LOG2_E = math.log2(math.e)
# tl.dot takes no side below 16
SMALLEST_TILE = 16


def wrap_triton(kernel: Any) -> Any:
    """``torch.library.wrap_triton`` of a compiled kernel; an interpreted one can't be traced, and stays."""
    return torch.library.wrap_triton(kernel) if isinstance(kernel, JITFunction) else kernel


def tile(size: int, largest: int) -> int:
    """The power of two that holds ``size``, from 16 to ``largest``."""
    return max(SMALLEST_TILE, min(largest, triton.next_power_of_2(size)))


def dot_precision(*tensors: Tensor) -> str:
    """For float32 products what torch's own setting says; it has no meaning for narrower types."""
    exact = torch.get_float32_matmul_precision() == "highest"
    return "ieee" if exact or tensors[0].dtype != torch.float32 else "tf32"


def widen(tensor: Tensor) -> bool:
    """Whether the kernel must multiply and store this type as float32.

    Triton's interpreter multiplies bfloat16 as if it were integers, and cuts where hardware rounds.
    """
    return tensor.dtype == torch.bfloat16 and interpreting()


def dense_rows(*tensors: Tensor) -> list[Tensor]:
    """The tensors, copied where their last axis is strided."""
    return [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in tensors]
