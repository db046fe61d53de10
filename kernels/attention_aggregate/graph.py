"""Attention and its head mean for exported graphs: plain operations, arranged for what runs them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# channels that hide the added keys: two, because products over an odd number of bfloat16 are slow too
_CHANNELS = 2
# of each; even in float16 their sum is a number, and no logit comes near it
_HIDDEN = -1e4


def attention_with_mean(
    q: Tensor, k: Tensor, v: Tensor, rows: int | None = None, *, scale: float
) -> tuple[Tensor, Tensor]:
    """``softmax(q k^T * scale) v``, and the mean over heads of the softmax, as in README.md.

    Keys are filled up to an even number: a matrix product over an odd one takes several times as long in
    bfloat16 on processors with AMX. Queries get two channels of ones, added keys a large negative number
    there: a mask would be one more pass over the largest tensor of the model.

    Args:
        q: (B, H, T, d), class tokens first.
        k: as ``q``.
        v: as ``q``.
        rows: the first rows of the mean, for a caller who reads no others; None for all.
        scale: of the logits.

    Returns:
        (B, H, T, d), and (B, rows or T, T).
    """
    batch, heads, tokens, dim = k.shape
    # two or three, never none or one: such sizes would be constants of the graph
    extra = 2 + tokens % 2
    hidden = functional.pad(k.new_zeros(batch, heads, extra, dim), (0, _CHANNELS), value=_HIDDEN)
    k = torch.cat((functional.pad(k, (0, _CHANNELS)), hidden), dim=-2)
    q = functional.pad(q * scale, (0, _CHANNELS), value=1.0)
    v = torch.cat((v, v.new_zeros(batch, heads, extra, dim)), dim=-2)
    attention = torch.softmax(q @ k.transpose(-2, -1), dim=-1)
    # the axis is kept until the mean is cut: without it OpenVINO turns every layer's mean to another layout
    mean = attention[:, :, :rows].mean(dim=1, keepdim=True)
    return attention @ v, mean[:, 0, :, :tokens]
