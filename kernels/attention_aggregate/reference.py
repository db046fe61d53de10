"""Attention and its maps in plain PyTorch: what the kernel is held against, and what runs without one."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_aggregate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_class_tokens: int,
    class_map: Tensor | None = None,
    affinity: Tensor | None = None,
    weight: float = 1.0,
    *,
    scale: float,
    upcast: bool = True,
) -> Tensor:
    """See :func:`wsss_rt.kernels.attention_aggregate.attention_aggregate`.

    Args:
        upcast: compute in float32, or in float64 if that is the inputs' type; else in the inputs' own type,
            with what autocast makes of it, as PyTorch would.
    """
    kept = v.dtype
    if upcast:
        q, k, v = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (q, k, v))
    attention = torch.softmax(q * scale @ k.transpose(-2, -1), dim=-1)
    if class_map is not None:
        rows = attention[:, :, :num_class_tokens, num_class_tokens:].to(class_map.dtype)
        class_map.add_(rows.mean(dim=1), alpha=weight)
    if affinity is not None:
        mean = attention.mean(dim=1)[:, num_class_tokens:, num_class_tokens:]
        affinity.add_(mean.to(affinity.dtype), alpha=weight)
    return (attention.to(v.dtype) @ v).to(kept)
