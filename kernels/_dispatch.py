"""Which implementation of an operator runs, and which one ran."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from wsss_rt.errors import UsageError, WsssError, nearest
from wsss_rt.kernel_choice import MODES, VARIABLE, asked_kernels
from wsss_rt.kernels import _proven
from wsss_rt.kernels._proven import DTYPES

#: The widest head a kernel holds in one tile.
MAX_HEAD_DIM = 128

# found without importing it, once: neither belongs into a traced graph
_INSTALLED = importlib.util.find_spec("triton") is not None
_ran: dict[str, str] = {}
_override: str | None = None
_plugins = False
_watching: set[tuple[str, str]] | None = None


class KernelUnavailableError(WsssError):
    """Kernels are forced, and one cannot run."""

    default_code = "kernel_unavailable"


def kernel_mode() -> str:
    """``auto``, ``triton`` or ``reference``.

    Raises:
        UsageError: the environment variable holds something else.
    """
    if _override is not None:
        return _override
    return asked_kernels()


@contextmanager
def use_kernels(mode: str) -> Iterator[None]:
    """Use this mode for a while, whatever the environment says; for all threads of the process."""
    global _override
    if mode not in MODES:
        raise UsageError(f"unknown kernels {mode!r}", fix=nearest(mode, MODES))
    kept, _override = _override, mode
    try:
        yield
    finally:
        _override = kept


@contextmanager
def as_plugins() -> Iterator[None]:
    """Trace operators as functions without side effects, which an exported graph can hold as plugin nodes."""
    global _plugins
    kept, _plugins = _plugins, True
    try:
        yield
    finally:
        _plugins = kept


def tracing_plugins() -> bool:
    """Whether :func:`as_plugins` holds."""
    return _plugins


def tracing_onnx() -> bool:
    """Whether an ONNX graph of plain operations is being made, in which no accumulator can be changed."""
    return torch.onnx.is_in_onnx_export() and not _plugins


def last_path(operator: str) -> str | None:
    """What the operator ran when last called: ``reference``, or ``triton`` with its launches in brackets."""
    return _ran.get(operator)


def record(operator: str, path: str) -> None:
    """Remember what an operator runs."""
    _ran[operator] = path
    if _watching is not None:
        _watching.add((operator, path))


@contextmanager
def watched() -> Iterator[set[tuple[str, str]]]:
    """All that is recorded meanwhile, as (operator, path)."""
    global _watching
    kept, _watching = _watching, set()
    try:
        yield _watching
    finally:
        _watching = kept


def choose_triton(
    operator: str, *tensors: Tensor, refusal: str | None = None, worthwhile: bool = True
) -> bool:
    """Whether an operator's Triton kernel is to run on these tensors.

    ``auto`` takes it on a GPU where it was proven on this very one (``wsss_rt.kernels.proof``); nothing is
    checked here, in the middle of a model.

    Args:
        operator: its name.
        tensors: all floating-point inputs that the kernel multiplies.
        refusal: why the kernel cannot take this call, where the caller knows a reason.
        worthwhile: False where ``auto`` is to stay with the reference, although the kernel could run.

    Raises:
        KernelUnavailableError: ``WSSS_RT_KERNELS=triton``, and it cannot run.
        UsageError: the environment variable holds no mode.
    """
    mode = kernel_mode()
    if mode == "reference" or (mode == "auto" and not (worthwhile and _on_gpu(tensors[0]))):
        return False
    if mode == "auto" and not _proven.takes(operator, tensors):
        return False
    why = refusal or _cannot(tensors)
    if why is not None and mode == "triton":
        raise KernelUnavailableError(
            f"the Triton kernel of {operator} cannot run, and {VARIABLE}=triton asks for it",
            why=why,
            fix=f"{VARIABLE}=auto falls back to PyTorch",
        )
    return why is None


def too_wide(queries: Tensor) -> str | None:
    """Why heads (..., d) fit no tile, or None."""
    width = queries.shape[-1]
    return f"heads are {width} wide, more than {MAX_HEAD_DIM}" if width > MAX_HEAD_DIM else None


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether autograd would record a call with these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def triton_installed() -> bool:
    """Whether Triton is there; it is not imported."""
    return _INSTALLED


def interpreting() -> bool:
    """Whether Triton's interpreter runs kernels: slowly, on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda and not interpreting()


def _cannot(tensors: tuple[Tensor, ...]) -> str | None:
    if not _INSTALLED:
        return "triton is not installed"
    if not tensors[0].is_cuda and not interpreting():
        return f"the tensors are on the {tensors[0].device.type}, not on a GPU"
    if any(tensor.dtype not in DTYPES for tensor in tensors):
        return f"it takes float16, bfloat16 and float32, not {tensors[0].dtype}"
    return None
