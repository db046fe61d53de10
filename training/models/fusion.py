"""From attention to localization maps: fusion over layers, affinity refinement."""

from __future__ import annotations

import torch
from torch import Tensor

from wsss_rt.errors import UsageError
from wsss_rt.kernels import tracing_onnx
from wsss_rt.kernels.affinity_propagate import Form, affinity_propagate, form_for
from wsss_rt.kernels.attention_aggregate import attention_aggregate
from wsss_rt.kernels.attention_aggregate.graph import attention_with_mean

#: Where patch affinity comes from: the official attention, or how alike the patch tokens are.
AFFINITY_SOURCES = ("attention", "tokens")
# of the softmax over cosines; 0.07 and 0.03 were worse on scenes (docs/decisions.md)
_TEMPERATURE = 0.2


class AttentionSums:
    """Sums over layers of the two parts of the attention that maps need; no layer's matrix is kept.

    Where the kernels run, the affinity may be left out (``streaming``): queries and keys are kept instead,
    and :meth:`refine` forms attention again without holding it.

    Args:
        classes: C.
        depth: number of layers.
        layers_fused: the last layers whose class-to-patch attention is summed.
        class_to_patch: whether it is wanted at all.
        affinity: whether patch affinity is, of all layers.
        uses: how many maps of C channels :meth:`refine` will be asked for; 0 where the caller reads
            ``affinity`` itself, or gives it layers by :meth:`add`.

    Attributes:
        class_to_patch: (B, C, N) float32, sum over the last ``layers_fused`` layers; None until one is added.
        affinity: (B, N, N) float32, patch to patch (rows are queries), sum over all layers; None where not
            wanted, or streaming. Neither symmetric nor normalised: each row sums to the depth less the mass
            spent on class tokens.
    """

    def __init__(
        self,
        *,
        classes: int,
        depth: int,
        layers_fused: int,
        class_to_patch: bool,
        affinity: bool,
        uses: int = 0,
    ) -> None:
        self._classes = classes
        self._depth = depth
        self._first_fused = depth - min(layers_fused, depth) if class_to_patch else depth
        self._affinity = affinity
        self._uses = uses
        self._form: Form | None = "accumulated" if uses == 0 else None
        self._queries: list[Tensor] = []
        self._keys: list[Tensor] = []
        self._scale = 1.0
        self.class_to_patch: Tensor | None = None
        self.affinity: Tensor | None = None

    @property
    def streaming(self) -> bool:
        """Whether queries and keys are kept in place of the affinity; known once a layer was seen."""
        return self._form == "streaming"

    def wants(self, layer: int) -> bool:
        """Whether the attention of this layer (from 0) enters a sum."""
        return self._affinity or layer >= self._first_fused

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Attention (B, H, T, d) of a layer, which adds its parts to the sums on the way."""
        if tracing_onnx():
            mixed, mean = attention_with_mean(q, k, v, None if self._affinity else self._classes, scale=scale)
            self.add(layer, mean)
            return mixed
        if self._affinity and self._form is None:
            self._form = form_for(
                q, k, class_tokens=self._classes, channels=self._classes, layers=self._depth, uses=self._uses
            )
        batch, patches = q.shape[0], q.shape[2] - self._classes
        class_map = affinity = None
        if layer >= self._first_fused:
            if self.class_to_patch is None:
                self.class_to_patch = q.new_zeros((batch, self._classes, patches), dtype=torch.float32)
            class_map = self.class_to_patch
        if self._affinity and self.streaming:
            self._queries.append(q)
            self._keys.append(k)
            self._scale = scale
        elif self._affinity:
            if self.affinity is None:
                self.affinity = q.new_zeros((batch, patches, patches), dtype=torch.float32)
            affinity = self.affinity
        return attention_aggregate(q, k, v, self._classes, class_map, affinity, scale=scale)

    def add(self, layer: int, attention: Tensor) -> None:
        """Add the head-mean attention (B, C + N, C + N) of a layer; without affinity its first C rows do."""
        self._form = "accumulated"
        patches = attention[:, :, self._classes :].float()
        if layer >= self._first_fused:
            part = patches[:, : self._classes]
            self.class_to_patch = part if self.class_to_patch is None else self.class_to_patch + part
        if self._affinity:
            part = patches[:, self._classes :]
            self.affinity = part if self.affinity is None else self.affinity + part

    def refine(self, maps: Tensor) -> Tensor:
        """Propagate maps (B, C, rows, columns) along the affinity, one pass; see :func:`refine`."""
        if self.streaming:
            flat = affinity_propagate(
                self._queries, self._keys, maps.flatten(2).float(), self._classes, scale=self._scale
            )
            return flat.reshape(maps.shape)
        assert self.affinity is not None, "patch affinity was not asked for"
        return refine(self.affinity, maps)


class ClassRows:
    """The class token's attention to the patches, layer by layer, without gradient.

    Attributes:
        rows: (B, N) float32 per layer, mean over heads.
    """

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def wants(self, layer: int) -> bool:
        """Every layer."""
        return True

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Attention (B, H, T, d) of a layer, whose row is kept."""
        if tracing_onnx():
            mixed, mean = attention_with_mean(q, k, v, 1, scale=scale)
            self.add(layer, mean)
            return mixed
        row = q.new_zeros((q.shape[0], 1, q.shape[2] - 1), dtype=torch.float32)
        mixed = attention_aggregate(q, k, v, 1, row, scale=scale)
        self.rows.append(row[:, 0].detach())
        return mixed

    def add(self, layer: int, attention: Tensor) -> None:
        """Keep the first row of a layer's head-mean attention (B, 1 or more, 1 + N)."""
        self.rows.append(attention[:, 0, 1:].detach().float())


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
    flat = maps.flatten(2)
    propagated = flat @ affinity.transpose(-2, -1) if not tracing_onnx() else _around_height(affinity, flat)
    return propagated.reshape(maps.shape)


def _around_height(affinity: Tensor, flat: Tensor) -> Tensor:
    """``flat @ affinity^T`` for engines that round every product to eight bits of mantissa.

    Maps differ from pixel to pixel by a part of their height, and what rounds to a part of the height is
    coarse beside that. So each map's height is found first, then subtracted inside the product, as one more
    column with a weight of 1, and added again behind it. Exact in exact arithmetic, whatever the height is.

    Args:
        affinity: (B, N, N).
        flat: (B, C, N).
    """
    patches = flat.shape[-1]
    rough = (affinity @ flat.transpose(-2, -1)).transpose(-2, -1)
    # a product, not a mean: the same rounded number must enter the column and the sum behind it
    height = rough @ flat.new_full((patches, 1), 1 / patches)
    wide = torch.cat((affinity, affinity.new_ones(affinity.shape[0], patches, 1)), dim=-1)
    # the affinity stands first so that OpenVINO, which follows the first input first, adds each layer's
    # attention as it appears, and holds one layer's at a time
    return (wide @ torch.cat((flat, -height), dim=-1).transpose(-2, -1)).transpose(-2, -1) + height
