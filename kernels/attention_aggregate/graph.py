"""Attention and its head mean for exported graphs: plain operations, arranged for what runs them."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_with_mean(
    q: Tensor, k: Tensor, v: Tensor, rows: int | None = None, *, scale: float
) -> tuple[Tensor, Tensor]:
    """``softmax(q k^T * scale) v``, and the mean over heads of the softmax, as in README.md.

    Args:
        q: (B, H, T, d), class tokens first.
        k: as ``q``.
        v: as ``q``.
        rows: the first rows of the mean, for a caller who reads no others; None for all.
        scale: of the logits.

    Returns:
        (B, H, T, d), and (B, rows or T, T).
    """
    attention = torch.softmax(q * scale @ k.transpose(-2, -1), dim=-1)
    # the axis is kept until the mean is cut: without it OpenVINO turns every layer's mean to another layout
    mean = attention[:, :, :rows].mean(dim=1, keepdim=True)
    return attention @ v, mean[:, 0]
