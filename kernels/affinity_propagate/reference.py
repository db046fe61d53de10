"""Propagation along patch affinity in plain PyTorch: forms each layer's attention, and no sum of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def affinity_propagate(
    queries: Sequence[Tensor],
    keys: Sequence[Tensor],
    maps: Tensor,
    num_class_tokens: int,
    *,
    scale: float,
    upcast: bool = True,
) -> Tensor:
    """See :func:`wsss_rt.kernels.affinity_propagate.affinity_propagate`.

    Args:
        upcast: compute in float32, or in float64 if that is the inputs' type; else the attention is formed in
            the inputs' own type, as PyTorch would.
    """
    total = torch.zeros_like(maps)
    for q, k in zip(queries, keys, strict=True):
        if upcast:
            q, k = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (q, k))
        attention = torch.softmax(q * scale @ k.transpose(-2, -1), dim=-1)
        affinity = attention.mean(dim=1)[:, num_class_tokens:, num_class_tokens:].to(maps.dtype)
        total = total + maps @ affinity.transpose(-2, -1)
    return total
