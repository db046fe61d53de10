"""Selection by mass, and attention to the selected tokens: float32 PyTorch, as the official code does it.

Selection is a mask and never a gather, so that no shape depends on the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsss_rt.kernels.masked_reattention.constants import EPSILON
from wsss_rt.kernels.precision import without_autocast


def cumulative_mass(mass: Tensor) -> Tensor:
    """Mass (B, N) of each token and of all before it, from the largest down, in the order of ``mass``.

    Of equal ones the lower index comes first. Comparing all pairs costs little beside attention, and needs
    neither a sort, whose order of equal values every runtime chooses for itself, nor a scatter.
    """
    index = torch.arange(mass.shape[-1], device=mass.device)
    own, other = mass[..., :, None], mass[..., None, :]
    counted = (other > own) | ((other == own) & (index <= index[:, None]))
    # no matrix product: reduced precision in it would move tokens across the threshold
    return torch.where(counted, other, 0.0).sum(dim=-1)


def select_tokens(mass: Tensor, threshold: float) -> Tensor:
    """See :func:`wsss_rt.kernels.masked_reattention.select_tokens`."""
    return cumulative_mass(mass.detach().float()) < threshold


def selected_softmax(logits: Tensor, selected: Tensor, places: Tensor | None = None) -> Tensor:
    """Softmax of logits (B, H, S, N) over the keys that are ``selected`` (B, N), and the query itself.

    The maximum is taken over all keys and every weight gets a small floor, as in the official code: where the
    kept logits lie far (about 13) below the maximum, rows become uniform over all keys, unlike with a mask of
    minus infinity.
    """
    index = torch.arange(logits.shape[-1], device=logits.device)
    own = index[:, None] == index if places is None else (places[:, :, None] == index)[:, None]
    kept = selected[:, None, None, :] | own
    weights = torch.where(kept, (logits - logits.amax(dim=-1, keepdim=True)).exp(), 0.0)
    # a tensor, because a symbolic size makes a poor divisor when the graph is exported
    floor = EPSILON / torch.scalar_tensor(logits.shape[-1], dtype=torch.float32, device=logits.device)
    return (weights + floor) / (weights.sum(dim=-1, keepdim=True) + EPSILON)


def masked_reattention(
    q: Tensor, k: Tensor, v: Tensor, selected: Tensor, places: Tensor | None = None, *, scale: float
) -> Tensor:
    """See :func:`wsss_rt.kernels.masked_reattention.masked_reattention`; float64 stays what it is."""
    with without_autocast(q.device):
        wide = [part.to(torch.promote_types(part.dtype, torch.float32)) for part in (q, k, v)]
        logits = wide[0] * scale @ wide[1].transpose(-2, -1)
        return (selected_softmax(logits, selected, places) @ wide[2]).to(v.dtype)
