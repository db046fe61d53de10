"""From attention to mass, and from priorities back to it: plain float32 functions.

The steps of the Token Refinement Transformer (BMVC 2022, arXiv 2208.01838) before and after its attention
among selected tokens (``wsss_rt.kernels.masked_reattention``), as the official code does them. Selection is a
mask everywhere and never a gather, so no shape depends on the data.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from wsss_rt.kernels.masked_reattention import EPSILON

_TINY = torch.finfo(torch.float32).tiny
_LOWEST = torch.finfo(torch.float32).min


def attention_mass(class_attention: Tensor) -> Tensor:
    """Share of each patch in the attention that the class token pays to patches.

    Args:
        class_attention: (L, B, N), of L layers, mean over heads, without the class token's own column.

    Returns:
        (B, N) float32 of 0..1, each row summing to 1; all 0 where no patch gets any.
    """
    total = class_attention.float().sum(dim=0)
    return total / total.sum(dim=-1, keepdim=True).clamp_min(_TINY)


def select_largest(mass: Tensor, count: int) -> Tensor:
    """The ``count`` tokens of largest mass (B, N), as (B, N) bool; of equal ones the lower index comes first.

    Where there are no more than ``count`` tokens, all of them.
    """
    index = torch.arange(mass.shape[-1], device=mass.device)
    own, other = mass.detach()[..., :, None], mass.detach()[..., None, :]
    before = (other > own) | ((other == own) & (index < index[:, None]))
    return before.sum(dim=-1) < count


def attend_selected(q: Tensor, k: Tensor, v: Tensor, selected: Tensor, *, scale: float) -> Tensor:
    """Plain attention (B, H, N, d) of every token to the ``selected`` (B, N): what those get among themselves
    does not depend on the others. At least one must be selected."""
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=selected[:, None, None, :], scale=scale)


def token_priorities(scores: Tensor, selected: Tensor, *, epsilon: float = EPSILON) -> Tensor:
    """Priorities (lambda) of the selected tokens: ``exp(score) / (sum of exp(score) + epsilon)``.

    The largest score is taken out of numerator and denominator, so that no score overflows.

    Args:
        scores: (B, N), raw.
        selected: (B, N) bool.
        epsilon: the priorities sum to less than 1 where all scores are far below 0; to exactly 1 with 0.

    Returns:
        (B, N) float32 of 0..1; 0 for unselected tokens, and for all where none is selected.
    """
    scores = scores.float()
    largest = torch.where(selected, scores, _LOWEST).amax(dim=-1, keepdim=True).detach()
    largest = torch.where(selected.any(dim=-1, keepdim=True), largest, 0.0)
    # unselected scores may be larger by far: replaced before the exponential, their gradient is 0 and not NaN
    weights = torch.where(selected, (torch.where(selected, scores, largest) - largest).exp(), 0.0)
    total = weights.sum(dim=-1, keepdim=True)
    return weights / (total + epsilon * torch.exp(-largest) if epsilon else total.clamp_min(_TINY))


def selected_mass(mass: Tensor, selected: Tensor) -> Tensor:
    """Mass (B, 1) of the selected tokens together (rho)."""
    return torch.where(selected, mass, 0.0).sum(dim=-1, keepdim=True)


def refined_mass(mass: Tensor, selected: Tensor, priorities: Tensor) -> Tensor:
    """Spread the mass of the selected tokens anew, by their priorities; the others keep theirs (m').

    Args:
        mass: (B, N) float32.
        selected: (B, N) bool.
        priorities: (B, N) float32, 0 for unselected tokens.

    Returns:
        (B, N) float32.
    """
    return torch.where(selected, priorities * selected_mass(mass, selected), mass)
