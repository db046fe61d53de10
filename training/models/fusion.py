"""From attention to localization maps: fusion over layers, affinity refinement."""

from __future__ import annotations

from torch import Tensor

from wsss_rt.errors import UsageError


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
