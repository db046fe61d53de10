"""Attention that adds its head-mean maps to accumulators, without ever being held in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from wsss_rt.kernels._dispatch import choose_triton, needs_gradient, record, too_wide, tracing_plugins
from wsss_rt.kernels.attention_aggregate import reference

OPERATOR = "attention_aggregate"


def attention_aggregate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_class_tokens: int,
    class_map: Tensor | None = None,
    affinity: Tensor | None = None,
    weight: float = 1.0,
    *,
    scale: float | None = None,
) -> Tensor:
    """``softmax(q k^T * scale) v``, and the parts of the softmax that maps are made of (README.md).

    The Triton kernel has no backward pass: where a gradient is needed, the reference runs, and it is
    differentiable, the accumulators included.

    Args:
        q: (B, H, T, d), the class tokens first; float16, bfloat16 or float32.
        k: as ``q``.
        v: as ``q``.
        num_class_tokens: C, of 0..T; the other N = T - C tokens are patches.
        class_map: (B, C, N) float32, contiguous, or None where it is not asked for. In place, ``weight``
            times the mean over heads of the class tokens' attention to the patches is added.
        affinity: (B, N, N) float32, likewise for the patches' attention to each other; rows are queries.
        weight: of this layer.
        scale: of the logits; d ** -0.5 where None.

    Returns:
        (B, H, T, d) in the type of ``v``.

    Raises:
        ValueError: a shape or type is not as above.
        KernelUnavailableError: ``WSSS_RT_KERNELS=triton``, and the kernel cannot run.
    """
    if not torch.compiler.is_compiling():
        _check(q, k, v, num_class_tokens, class_map, affinity)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if tracing_plugins() and (class_map is not None or affinity is not None):
        from wsss_rt.kernels.attention_aggregate import functional

        record(OPERATOR, "plugins")
        return functional.attention_aggregate(
            q, k, v, num_class_tokens, class_map, affinity, float(weight), scale=scale
        )
    refusal = too_wide(q)
    if needs_gradient(q, k, v):
        refusal = "it has no backward pass, and a gradient is asked for"
    if not choose_triton(OPERATOR, q, k, v, refusal=refusal):
        record(OPERATOR, "reference")
        return reference.attention_aggregate(
            q, k, v, num_class_tokens, class_map, affinity, weight, scale=scale, upcast=False
        )
    from wsss_rt.kernels.attention_aggregate import triton

    record(OPERATOR, f"triton[{','.join(triton.launches(num_class_tokens, class_map, affinity))}]")
    return triton.attention_aggregate(
        q.to(v.dtype), k.to(v.dtype), v, num_class_tokens, class_map, affinity, float(weight), scale
    )


def _check(
    q: Tensor, k: Tensor, v: Tensor, classes: int, class_map: Tensor | None, affinity: Tensor | None
) -> None:
    if q.dim() != 4 or not q.shape == k.shape == v.shape:
        shapes = ", ".join(str(tuple(part.shape)) for part in (q, k, v))
        raise ValueError(f"queries, keys and values must all be (B, H, T, d), and are {shapes}")
    batch, _, tokens, _ = q.shape
    if not 0 <= classes <= tokens:
        raise ValueError(f"{classes} of {tokens} tokens cannot be class tokens")
    patches = tokens - classes
    for name, total, rows in (("class_map", class_map, classes), ("affinity", affinity, patches)):
        if total is None:
            continue
        if tuple(total.shape) != (batch, rows, patches):
            raise ValueError(f"{name} must be {(batch, rows, patches)}, and is {tuple(total.shape)}")
        if total.dtype != torch.float32 or not total.is_contiguous() or total.device != q.device:
            raise ValueError(f"{name} must be contiguous float32 on the device of the queries")
