"""Token selection, attention among the selected tokens, and their priorities: plain float32 functions.

The steps of the Token Refinement Transformer (BMVC 2022, arXiv 2208.01838) between its preliminary attention
and its refined one, as the official code does them: a kernel that replaces one is held against it. Selection
is a mask everywhere and never a gather, so no shape depends on the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsss_rt.training.models.precision import without_autocast

# of the softmax over selected keys, and of the priorities
EPSILON = 1e-6
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


def cumulative_mass(mass: Tensor) -> Tensor:
    """Mass of each token and of all that come before it, from the largest down; of equal ones the lower index
    comes first.

    Comparing all pairs costs little beside attention, and needs neither a sort, whose order of equal values
    every runtime chooses for itself, nor a scatter.

    Args:
        mass: (B, N) float32.

    Returns:
        (B, N) float32, in the order of ``mass``.
    """
    index = torch.arange(mass.shape[-1], device=mass.device)
    own, other = mass[..., :, None], mass[..., None, :]
    counted = (other > own) | ((other == own) & (index <= index[:, None]))
    # no matrix product: reduced precision in it would move tokens across the threshold
    return torch.where(counted, other, 0.0).sum(dim=-1)


def select_tokens(mass: Tensor, threshold: float) -> Tensor:
    """The tokens of largest mass that together stay strictly below ``threshold``.

    The token that crosses it is left out, so nothing is selected where one token alone holds that much.

    Args:
        mass: (B, N) of 0..1.
        threshold: share of the mass; above 1 selects all.

    Returns:
        (B, N) bool.
    """
    return cumulative_mass(mass.detach().float()) < threshold


def selected_softmax(logits: Tensor, selected: Tensor) -> Tensor:
    """Softmax over the selected keys and the query itself.

    The maximum is taken over all keys and every weight gets a small floor, as in the official code: where the
    kept logits lie far (about 13) below the maximum, rows become uniform over all keys, unlike with a mask of
    minus infinity.

    Args:
        logits: (B, H, N, N) float32, scaled; rows are queries.
        selected: (B, N) bool.

    Returns:
        (B, H, N, N) float32; rows sum to 1.
    """
    index = torch.arange(logits.shape[-1], device=logits.device)
    kept = selected[:, None, None, :] | (index[:, None] == index)
    weights = torch.where(kept, (logits - logits.amax(dim=-1, keepdim=True)).exp(), 0.0)
    # a tensor, because a symbolic size makes a poor divisor when the graph is exported
    floor = EPSILON / torch.scalar_tensor(logits.shape[-1], dtype=torch.float32, device=logits.device)
    return (weights + floor) / (weights.sum(dim=-1, keepdim=True) + EPSILON)


def masked_reattention(q: Tensor, k: Tensor, v: Tensor, selected: Tensor, *, scale: float) -> Tensor:
    """Attention of every token to the selected ones and to itself.

    Args:
        q: (B, H, N, d), any float type; computed in float32.
        k: as ``q``.
        v: as ``q``.
        selected: (B, N) bool.
        scale: of the logits.

    Returns:
        (B, H, N, d) in the type of ``v``; unselected queries too.
    """
    with without_autocast(q.device):
        logits = q.float() * scale @ k.float().transpose(-2, -1)
        return (selected_softmax(logits, selected) @ v.float()).to(v.dtype)


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
