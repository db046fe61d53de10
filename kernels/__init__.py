"""Operators that keep attention out of memory: each a PyTorch reference, a Triton kernel, and a dispatcher.

``WSSS_RT_KERNELS`` chooses: ``auto`` (the default: the reference, until a GPU has passed the kernels),
``triton`` (an error where it cannot run) or ``reference``. Triton is not imported before a kernel is to run.
"""

from __future__ import annotations

from wsss_rt.kernels._dispatch import (
    KernelUnavailableError,
    kernel_mode,
    last_path,
    tracing_onnx,
    use_kernels,
)

__all__ = ["KernelUnavailableError", "kernel_mode", "last_path", "tracing_onnx", "use_kernels"]
