"""From attention to localization maps: fusion over layers, affinity refinement."""

from __future__ import annotations

import torch
from torch import Tensor

from wsss_rt.errors import UsageError

#: Where patch affinity comes from: the official attention, or how alike the patch tokens are.
AFFINITY_SOURCES = ("attention", "tokens")
# of the softmax over cosines; 0.07 and 0.03 were worse on scenes (docs/decisions.md)
_TEMPERATURE = 0.2


class AttentionSums:
    """Sums over layers of the two parts of the attention that maps need; no layer's matrix is kept.

    Attributes:
        class_to_patch: (B, C, N) float32, sum over the last ``layers_fused`` layers; None until one is added.
        affinity: (B, N, N) float32, patch to patch (rows are queries), sum over all layers; None where not
            wanted. Neither symmetric nor normalised: each row sums to the depth less the mass spent on class
            tokens.
    """

    def __init__(
        self, *, classes: int, depth: int, layers_fused: int, class_to_patch: bool, affinity: bool
    ) -> None:
        self._classes = classes
        self._first_fused = depth - min(layers_fused, depth) if class_to_patch else depth
        self._affinity = affinity
        self.class_to_patch: Tensor | None = None
        self.affinity: Tensor | None = None

    def wants(self, layer: int) -> bool:
        """Whether the attention of this layer (from 0) enters a sum."""
        return self._affinity or layer >= self._first_fused

    def add(self, layer: int, attention: Tensor) -> None:
        """Add the head-mean attention (B, C + N, C + N) of a layer."""
        patches = attention[:, :, self._classes :].float()
        if layer >= self._first_fused:
            part = patches[:, : self._classes]
            self.class_to_patch = part if self.class_to_patch is None else self.class_to_patch + part
        if self._affinity:
            part = patches[:, self._classes :]
            self.affinity = part if self.affinity is None else self.affinity + part


def check_layers_fused(layers: int) -> int:
    """The number of layers to fuse, if it is one; more than there are means all."""
    if layers < 1:
        raise UsageError(f"layers_fused is {layers}, but at least one layer must be fused")
    return layers


def to_grid(flat: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, C, N) row-major to (B, C, rows, columns)."""
    return flat.reshape(flat.shape[0], flat.shape[1], *grid)


def token_affinity(tokens: Tensor) -> Tensor:
    """Affinity of patches by the cosine of their tokens, each image's mean taken off first.

    A model that trains for minutes has features that part objects from what surrounds them long before its
    attention does. Unlike attention it is normalised: rows sum to 1.

    Args:
        tokens: (B, N, D), patches only.

    Returns:
        (B, N, N) float32, a softmax over each row.
    """
    centred = tokens.float() - tokens.float().mean(dim=1, keepdim=True)
    unit = centred / (centred.square().sum(dim=-1, keepdim=True) + 1e-6).sqrt()
    return torch.softmax(unit @ unit.transpose(-2, -1) / _TEMPERATURE, dim=-1)


def refine(affinity: Tensor, maps: Tensor) -> Tensor:
    """Propagate maps along patch affinity, one pass: ``out[c, i] = sum_j affinity[i, j] * maps[c, j]``.

    Args:
        affinity: (B, N, N), rows are queries.
        maps: (B, C, rows, columns), N = rows * columns.

    Returns:
        (B, C, rows, columns).
    """
    propagated = maps.flatten(2) @ affinity.transpose(-2, -1)
    return propagated.reshape(maps.shape)
