"""One layer of ``affinity_propagate`` without side effects: what a graph holds as a plugin node."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wsss_rt.kernels._plugin_node import plugin_node


@torch.library.custom_op("wsss_rt::propagate_layer", mutates_args=())
def propagate_layer(q: Tensor, k: Tensor, maps: Tensor, before: Tensor, scale: float) -> Tensor:
    """``before`` plus maps propagated along one layer's head-mean attention between the last N tokens.

    Args:
        q: (B, H, T, d).
        k: as ``q``.
        maps: (B, channels, N) float32.
        before: likewise.
        scale: of the logits.

    Returns:
        (B, channels, N) float32.
    """
    patches = maps.shape[-1]
    attention = torch.softmax(q.float() @ k.float().transpose(-2, -1) * scale, dim=-1)
    affinity = attention.mean(dim=1)[:, -patches:, -patches:]
    return before + maps @ affinity.transpose(-2, -1)


@propagate_layer.register_fake
def _(q: Tensor, k: Tensor, maps: Tensor, before: Tensor, scale: float) -> Tensor:
    return torch.empty_like(before)


def affinity_propagate(
    queries: Sequence[Tensor], keys: Sequence[Tensor], maps: Tensor, *, scale: float
) -> Tensor:
    """As the dispatcher of this folder: a node a layer."""
    total = torch.zeros_like(maps)
    for q, k in zip(queries, keys, strict=True):
        if torch.onnx.is_in_onnx_export():
            like = [(maps.dtype, maps.shape)]
            total = plugin_node("propagate_layer", (q, k, maps, total), {"scale": scale}, like)[0]
        else:
            total = propagate_layer(q, k, maps, total, scale)
    return total
