"""From attention to mass, and from priorities back to it: plain float32 functions.

The steps of the Token Refinement Transformer (BMVC 2022, arXiv 2208.01838) before its attention among
selected tokens (``wsss_rt.kernels.masked_reattention``), and after it (``spread.py`` there), as the official
code does them. Selection is a mask and never a gather, so no shape depends on the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wsss_rt.kernels.masked_reattention.spread import refined_mass, selected_mass, token_priorities

__all__ = ["attention_mass", "refined_mass", "selected_mass", "token_priorities"]

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
