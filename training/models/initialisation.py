"""How our own small ViTs begin: attention that compares contents, since nothing pretrained says so.

Random projections make attention look at everything alike, and a small model that trains for minutes hardly
leaves that state. Trockman and Kolter ("Mimetic initialization of self-attention layers", ICML 2023) give the
projections of an untrained model the structure that trained ones are found to have: queries and keys of alike
tokens match, and what attention adds back is the negative of what is there. Besides learning faster, patch
affinity then means something from the first step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# shares of noise and of identity in W_q W_k^T, and in W_v W_proj
_QUERY_KEY = 0.7, 0.7
_VALUE_OUT = 0.4, -0.4


@torch.no_grad()
def mimetic_start(blocks: Iterable[nn.Module]) -> None:
    """Set the attention projections of timm's ViT blocks as the paper says; biases become zero."""
    for block in blocks:
        attention: Any = block.attn
        dim, heads = attention.qkv.in_features, attention.num_heads
        queries, keys = [], []
        for _ in range(heads):
            left, right = _factors(_target(dim, *_QUERY_KEY), rank=dim // heads)
            queries.append(left.T)
            keys.append(right.T)
        value, out = _factors(_target(dim, *_VALUE_OUT), rank=dim)
        attention.qkv.weight.copy_(torch.cat((*queries, *keys, value.T)))
        attention.proj.weight.copy_(out)
        for layer in (attention.qkv, attention.proj):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _target(dim: int, noise: float, identity: float) -> Tensor:
    return noise * torch.randn(dim, dim) / math.sqrt(dim) + identity * torch.eye(dim)


def _factors(matrix: Tensor, *, rank: int) -> tuple[Tensor, Tensor]:
    """Left and right, each (dim, rank), with ``left @ right.T`` the best approximation of the matrix."""
    u, s, vt = torch.linalg.svd(matrix)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, vt[:rank].T * root


def sine_positions(side: int, dim: int) -> Tensor:
    """(side * side, dim): sines and cosines of row and column at dim / 4 wavelengths each, 2 pi to 10,000."""
    steps = torch.arange(side, dtype=torch.float32)
    rates = 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))
    waves = steps[:, None] * rates
    axis = torch.cat((waves.sin(), waves.cos()), dim=1)
    rows = axis[:, None, :].expand(side, side, -1)
    columns = axis[None, :, :].expand(side, side, -1)
    return torch.cat((rows, columns), dim=2).reshape(side * side, -1)
