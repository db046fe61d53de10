"""Priorities of selected tokens, and the mass spread anew by them: float32 PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from wsss_rt.kernels.masked_reattention.constants import EPSILON

_TINY = torch.finfo(torch.float32).tiny
_LOWEST = torch.finfo(torch.float32).min


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


def spread_mass(mass: Tensor, selected: Tensor, scores: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """See :func:`wsss_rt.kernels.masked_reattention.spread_mass`."""
    priorities = token_priorities(scores, selected, epsilon=epsilon)
    return priorities, refined_mass(mass, selected, priorities)
