"""From attention to mass, and from priorities back to it: plain float32 functions.

The steps of the Token Refinement Transformer (BMVC 2022, arXiv 2208.01838) before its attention among
selected tokens (``wsss_rt.kernels.masked_reattention``), and after it (``spread.py`` there), as the official
code does them. Selection is a mask and never a gather, so no shape depends on the data.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from wsss_rt.kernels.masked_reattention.spread import refined_mass, selected_mass, token_priorities

__all__ = [
    "attend_selected",
    "attention_mass",
    "refined_mass",
    "select_largest",
    "selected_mass",
    "token_priorities",
]

_TINY = torch.finfo(torch.float32).tiny


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
