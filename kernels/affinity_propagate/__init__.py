"""Maps propagated along patch affinity that never exists, and when that is the better way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wsss_rt.kernels._dispatch import (
    choose_triton,
    kernel_mode,
    needs_gradient,
    record,
    too_wide,
    tracing_plugins,
)
from wsss_rt.kernels.affinity_propagate import reference
from wsss_rt.kernels.affinity_propagate.cost import Form, Problem, choose_form

__all__ = ["Form", "Problem", "affinity_propagate", "choose_form", "form_for"]

OPERATOR = "affinity_propagate"
_NO_BACKWARD = "it has no backward pass, and a gradient is asked for"


def affinity_propagate(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    maps: Tensor,
    num_class_tokens: int = 0,
    *,
    scale: float | None = None,
) -> Tensor:
    """Sum over layers of the head-mean ``softmax(q k^T * scale)``'s patch block, times maps (README.md).

    ``out[c, i] = sum_layers mean_heads sum_j softmax[C + i, C + j] * maps[c, j]``. The Triton kernel has no
    backward pass; the reference, which runs where a gradient is needed, has one.

    Args:
        queries: of each layer, (B, H, T, d), class tokens first; float16, bfloat16 or float32.
        keys: likewise.
        maps: (B, channels, N) float32, N = T - C.
        num_class_tokens: C. They take their share of each softmax, and nothing is propagated from them.
        scale: of the logits; d ** -0.5 where None.

    Returns:
        (B, channels, N) float32.

    Raises:
        ValueError: a shape or type is not as above.
        KernelUnavailableError: ``WSSS_RT_KERNELS=triton``, and the kernel cannot run.
    """
    queries, keys = list(queries), list(keys)
    if not torch.compiler.is_compiling():
        _check(queries, keys, maps, num_class_tokens)
    scale = queries[0].shape[-1] ** -0.5 if scale is None else float(scale)
    if tracing_plugins():
        from wsss_rt.kernels.affinity_propagate import functional

        record(OPERATOR, "plugins")
        return functional.affinity_propagate(queries, keys, maps, scale=scale)
    if not choose_triton(OPERATOR, *queries, *keys, refusal=_refusal(maps, *queries, *keys)):
        record(OPERATOR, "reference")
        return reference.affinity_propagate(queries, keys, maps, num_class_tokens, scale=scale, upcast=False)
    from wsss_rt.kernels.affinity_propagate import triton

    record(OPERATOR, "triton[propagate]")
    return triton.affinity_propagate(queries, keys, maps, num_class_tokens, scale)


def form_for(q: Tensor, k: Tensor, *, class_tokens: int, channels: int, layers: int, uses: int = 1) -> Form:
    """How a model should propagate, from what its first layer looks like.

    ``"accumulated"`` wherever the kernel would not run: streaming pays where attention stays out of memory.

    Args:
        q: (B, H, T, d).
        k: as ``q``.
        class_tokens: C.
        channels: maps for each image.
        layers: whose attention is summed.
        uses: how often maps will be propagated.
    """
    # a graph must not depend on the size that it was traced with
    if kernel_mode() == "reference" or torch.compiler.is_exporting() or _refusal(q, k) is not None:
        return "accumulated"
    # both take part: where attention is held in memory anyway, forming it twice gains nothing
    if not (choose_triton(OPERATOR, q, k) and choose_triton("attention_aggregate", q, k)):
        return "accumulated"
    batch, heads, tokens, dim = q.shape
    problem = Problem(batch, heads, tokens, class_tokens, channels, layers, dim, q.element_size(), uses)
    return choose_form(problem)


def _refusal(*tensors: Tensor) -> str | None:
    return _NO_BACKWARD if needs_gradient(*tensors) else too_wide(tensors[-1])


def _check(queries: list[Tensor], keys: list[Tensor], maps: Tensor, classes: int) -> None:
    if not queries or len(queries) != len(keys):
        raise ValueError(f"{len(queries)} layers of queries and {len(keys)} of keys")
    shape = queries[0].shape
    if len(shape) != 4 or any(part.shape != shape for part in (*queries, *keys)):
        raise ValueError("queries and keys of all layers must be (B, H, T, d) of one size")
    expected = (shape[0], maps.shape[1] if maps.dim() == 3 else "channels", shape[2] - classes)
    if tuple(maps.shape) != expected or maps.dtype != torch.float32 or not 0 <= classes <= shape[2]:
        raise ValueError(f"maps must be {expected} float32, and are {tuple(maps.shape)} {maps.dtype}")
