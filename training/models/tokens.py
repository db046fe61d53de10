"""Class tokens: one learned token per class in front of the patch tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def new_tokens(count: int, dim: int) -> nn.Parameter:
    """Learned tokens (1, count, dim), truncated normal with standard deviation 0.02."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, dim), std=0.02))


def prepend(class_tokens: Tensor, patches: Tensor) -> Tensor:
    """Put class tokens (1, C, D) before the patch tokens (B, N, D); returns (B, C + N, D)."""
    return torch.cat((class_tokens.expand(patches.shape[0], -1, -1), patches), dim=1)


def split(tokens: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Class tokens (B, C, D) and patch tokens (B, N, D) of a sequence (B, C + N, D)."""
    return tokens[:, :classes], tokens[:, classes:]


def channel_mean(class_tokens: Tensor) -> Tensor:
    """Class logits (B, C) float32: the mean over the channels of each class token (MCTformer)."""
    return class_tokens.float().mean(dim=-1)
