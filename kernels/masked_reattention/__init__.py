"""Token refinement's selection by cumulative mass, and attention among what is selected (BMVC 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from wsss_rt.kernels._dispatch import choose_triton, needs_gradient, record, too_wide
from wsss_rt.kernels.masked_reattention import reference, spread
from wsss_rt.kernels.masked_reattention.constants import EPSILON

__all__ = ["EPSILON", "masked_reattention", "select_tokens", "spread_mass"]

SELECT, REATTEND, SPREAD = "select_tokens", "masked_reattention", "spread_mass"


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


def masked_reattention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    selected: Tensor,
    *,
    scale: float,
    places: Tensor | None = None,
) -> Tensor:
    """Attention of every token to the selected ones and to itself, with the official epsilons (README.md).

    Both implementations compute in float32 and have a gradient; the kernel's backward pass forms the
    attention again, by the reference.

    Args:
        q: (B, H, N, d), float16, bfloat16 or float32; (B, H, S, d) with ``places``, the compact form.
        k: (B, H, N, d).
        v: as ``k``.
        selected: (B, N) bool.
        scale: of the logits.
        places: (B, S), integers of 0..N-1: which token each query is, where not all tokens ask. Rows of the
            softmax do not depend on each other, so each row is what it is in the full form.

    Returns:
        (B, H, N or S, d) in the type of ``v``; without ``places`` unselected queries too.

    Raises:
        ValueError: a shape or type is not as above.
        KernelUnavailableError: ``WSSS_RT_KERNELS=triton``, and the kernel cannot run.
    """
    if not torch.compiler.is_compiling():
        asking = k.shape[2] if places is None and k.dim() == 4 else q.shape[-2]
        if q.dim() != 4 or k.shape != v.shape or q.shape != (*k.shape[:2], asking, k.shape[3]):
            shapes = ", ".join(str(tuple(part.shape)) for part in (q, k, v))
            raise ValueError(f"queries, keys and values must all be (B, H, N, d), and are {shapes}")
        if selected.dtype != torch.bool or tuple(selected.shape) != (k.shape[0], k.shape[2]):
            raise ValueError(f"selected must be (B, N) bool, and is {tuple(selected.shape)} {selected.dtype}")
        if places is not None and tuple(places.shape) != (q.shape[0], q.shape[2]):
            raise ValueError(f"places must be {(q.shape[0], q.shape[2])}, and are {tuple(places.shape)}")
    # the proof asks nothing of the backward pass, which forms the attention all the same
    worthwhile = not needs_gradient(q, k, v)
    if not choose_triton(REATTEND, q, k, v, refusal=too_wide(q), worthwhile=worthwhile):
        record(REATTEND, "reference")
        return reference.masked_reattention(q, k, v, selected, places, scale=scale)
    from wsss_rt.kernels.masked_reattention import triton

    record(REATTEND, "triton[reattend]")
    return triton.masked_reattention(q, k, v, selected, places, float(scale))


def spread_mass(
    mass: Tensor, selected: Tensor, scores: Tensor, *, epsilon: float = EPSILON
) -> tuple[Tensor, Tensor]:
    """Priorities (lambda) of the selected tokens, and the mass of these spread anew by them (m').

    ``priority = exp(score) / (sum of exp(score) + epsilon)`` over selected tokens; the others have none, and
    keep their mass. The kernel, one launch, has no backward pass; the reference runs where a gradient is
    needed.

    Args:
        mass: (B, N) float32.
        selected: (B, N) bool.
        scores: (B, N) float32, raw; those of unselected tokens do not matter.
        epsilon: priorities sum to less than 1 where all scores are far below 0; to exactly 1 with 0.

    Returns:
        Priorities and refined mass, (B, N) float32 each.

    Raises:
        KernelUnavailableError: ``WSSS_RT_KERNELS=triton``, and the kernel cannot run.
    """
    refusal = None
    if needs_gradient(mass, scores):
        refusal = "it has no backward pass, and a gradient is asked for"
    if not choose_triton(SPREAD, mass, scores, refusal=refusal):
        record(SPREAD, "reference")
        return spread.spread_mass(mass, selected, scores, epsilon)
    from wsss_rt.kernels.masked_reattention import triton

    record(SPREAD, "triton[spread]")
    return triton.spread_mass(mass.float(), selected, scores.float(), float(epsilon))
