"""Token refinement's selection by cumulative mass, and attention among what is selected (BMVC 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from wsss_rt.kernels._dispatch import choose_triton, record, too_wide
from wsss_rt.kernels.masked_reattention import reference
from wsss_rt.kernels.masked_reattention.constants import EPSILON

__all__ = ["EPSILON", "masked_reattention", "select_tokens"]

SELECT, REATTEND = "select_tokens", "masked_reattention"


def select_tokens(mass: Tensor, threshold: float) -> Tensor:
    """The tokens of largest mass that together stay strictly below ``threshold``.

    The token that crosses it is left out, so nothing is selected where one token alone holds that much. Of
    equal masses the lower index comes first. Sums and comparison are float32 whatever the type of ``mass``;
    no gradient passes.

    Args:
        mass: (B, N) of 0..1.
        threshold: share of the mass; above 1 selects all.

    Returns:
        (B, N) bool.

    Raises:
        KernelUnavailableError: ``WSSS_RT_KERNELS=triton``, and the kernel cannot run.
    """
    if not choose_triton(SELECT, mass):
        record(SELECT, "reference")
        return reference.select_tokens(mass, threshold)
    from wsss_rt.kernels.masked_reattention import triton

    record(SELECT, "triton[select]")
    return triton.select_tokens(mass.detach().float(), float(threshold))


def masked_reattention(q: Tensor, k: Tensor, v: Tensor, selected: Tensor, *, scale: float) -> Tensor:
    """Attention of every token to the selected ones and to itself, with the official epsilons (README.md).

    Both implementations compute in float32 and have a gradient; the kernel's backward pass forms the
    attention again, by the reference.

    Args:
        q: (B, H, N, d), float16, bfloat16 or float32.
        k: as ``q``.
        v: as ``q``.
        selected: (B, N) bool.
        scale: of the logits.

    Returns:
        (B, H, N, d) in the type of ``v``; unselected queries too.

    Raises:
        ValueError: a shape or type is not as above.
        KernelUnavailableError: ``WSSS_RT_KERNELS=triton``, and the kernel cannot run.
    """
    if not torch.compiler.is_compiling():
        if q.dim() != 4 or not q.shape == k.shape == v.shape:
            shapes = ", ".join(str(tuple(part.shape)) for part in (q, k, v))
            raise ValueError(f"queries, keys and values must all be (B, H, N, d), and are {shapes}")
        if selected.dtype != torch.bool or tuple(selected.shape) != (q.shape[0], q.shape[2]):
            raise ValueError(f"selected must be (B, N) bool, and is {tuple(selected.shape)} {selected.dtype}")
    if not choose_triton(REATTEND, q, k, v, refusal=too_wide(q)):
        record(REATTEND, "reference")
        return reference.masked_reattention(q, k, v, selected, scale=scale)
    from wsss_rt.kernels.masked_reattention import triton

    record(REATTEND, "triton[reattend]")
    return triton.masked_reattention(q, k, v, selected, float(scale))
