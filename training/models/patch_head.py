"""Patch heads: class evidence of every patch token, and how it becomes one score per class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsss_rt.training.models.fusion import to_grid


def new_patch_head(dim: int, classes: int) -> nn.Conv2d:
    """3x3 convolution with bias from token channels to classes, padded so that the grid keeps its size."""
    return nn.Conv2d(dim, classes, 3, padding=1)


def semantic_map(head: nn.Module, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """Class evidence (B, C, rows, columns) float32, of either sign, from patch tokens (B, N, D)."""
    return head(to_grid(patches.transpose(1, 2), grid)).float()


def average_pool(semantic: Tensor) -> Tensor:
    """Logits (B, C): the mean of class evidence (B, C, rows, columns) over all patches."""
    return semantic.flatten(2).mean(dim=-1)


def ranked_pool(semantic: Tensor, decay: float) -> Tensor:
    """Global weighted ranking pooling (MCTformer+, TPAMI 2024; after Kolesnikov and Lampert, ECCV 2016).

    A weighted mean over all patches, in which the patch with the j-th highest evidence of its class (from 0)
    weighs ``decay ** j``: 1 is average pooling, near 0 it is the maximum.

    Args:
        semantic: (B, C, rows, columns) float32, before ReLU.
        decay: in (0, 1].

    Returns:
        (B, C) float32.
    """
    ranked = semantic.flatten(2).sort(dim=-1, descending=True).values
    weights = decay ** torch.arange(ranked.shape[-1], dtype=torch.float32, device=semantic.device)
    return (ranked * weights).sum(dim=-1) / weights.sum()
