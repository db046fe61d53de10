"""An engine's maps from the first pixel to the mask without leaving their device; the counterpart of
``wsss_rt.localize`` and ``wsss_rt.segment`` in torch and Triton.

Knows nothing of the project's own types: numbers and arrays come in, numbers and arrays go out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from wsss_rt.kernels.map_to_mask import map_planes, map_to_mask, merge_grids, planes_to_mask
from wsss_rt.kernels.streams import Mark, Streams

# batches in the device's queue: one runs, one waits, and the host prepares the next
AHEAD = 2


@dataclass(frozen=True)
class Inferred:
    """What the model says of an image; a batch's images share its marks.

    Attributes:
        scores: per pass (F, C) float32, on the host once ``ended`` was reached.
        finite: per pass (F,) bool, likewise: whether all of a row's maps are finite.
        maps: per pass (F, C, h, w), on the device.
        began, ended: of the batch.
        images: in the batch.
    """

    scores: list[Tensor]
    finite: list[Tensor]
    maps: list[Tensor]
    began: Mark
    ended: Mark
    images: int


@dataclass(frozen=True)
class Marked:
    """A mask and what its scores come to.

    Attributes:
        mask: (H, W) uint8 or uint16.
        confidence: mean margin of the pixels, not yet confined to 0..1; 0 where no class competes.
        class_scores: per class, its mean score over the pixels that it won; 0 where it won none.
    """

    mask: NDArray[Any]
    confidence: float
    class_scores: tuple[float, ...]


class DeviceMaps:
    """Runs an engine and makes masks of its maps, on its device.

    :meth:`infer` belongs to one thread; the other methods may be called from several, each on a stream of
    its own. None of them waits for the device unless it says so.

    Args:
        run: (B, 3, H, W) float32 on the device to scores (B, C) and maps (B, C, h, w) on the device; does not
            wait.
        device: ``cpu``, ``cuda:0``.
        table: (3, 256) float32, the normalised value of every byte of every channel.
    """

    def __init__(
        self, run: Callable[[Tensor], tuple[Tensor, ...]], device: str, table: NDArray[np.float32]
    ) -> None:
        self._run = run
        self.streams = Streams(torch.device(device))
        self._table = torch.from_numpy(np.array(table)).flatten().to(device)
        self._channels = torch.tensor([0, 256, 512], dtype=torch.int32, device=device)[:, None, None]
        self._running: deque[Mark] = deque()

    def infer(self, images: Sequence[Sequence[NDArray[np.uint8]]], *, flip: bool) -> list[Inferred]:
        """Ask for a batch; waits while more than :data:`AHEAD` are under way.

        Args:
            images: per image its pixels (h, w, 3) uint8 RGB at each scale; all of one scale have one size.
            flip: also run each of them mirrored.
        """
        while len(self._running) >= AHEAD:
            self._running.popleft().wait()
        found: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        with self.streams.work():
            began = self.streams.mark()
            for parts in zip(*images, strict=True):
                scores, maps = self._run(self._tensor(np.stack(parts), flip))
                finite = torch.isfinite(maps).flatten(1).all(dim=1)
                kept = self.streams.download(scores.float()), self.streams.download(finite), maps
                for kind, tensor in zip(found, kept, strict=True):
                    kind.append(tensor)
            ended = self.streams.mark()
        self._running.append(ended)
        rows = 1 + flip
        inferred = []
        for index in range(len(images)):
            own = slice(index * rows, (index + 1) * rows)
            rows_of = [[tensor[own] for tensor in kind] for kind in found]
            inferred.append(Inferred(rows_of[0], rows_of[1], rows_of[2], began, ended, len(images)))
        return inferred

    def settle(self, image: Inferred) -> tuple[list[NDArray[np.float32]], bool, float]:
        """Wait for an image's batch: scores per pass, whether all maps are finite, and milliseconds.

        The milliseconds are the image's share of what the device took for the batch.
        """
        image.ended.wait()
        finite = all(bool(row.all()) for row in image.finite)
        milliseconds = image.ended.milliseconds_since(image.began) / image.images
        return [scores.numpy() for scores in image.scores], finite, milliseconds

    def mark(self, image: Inferred, classes: Sequence[int], size: tuple[int, int], **rule: Any) -> Marked:
        """The mask of a localizer's image in two launches; waits for it.

        Args:
            image: settled.
            classes: 0-based indices of the present classes.
            size: (H, W) of the mask.
            **rule: ``upsample``, ``normalise``, ``background``, ``ignore_band`` and ``wide``, as
                :func:`wsss_rt.kernels.map_to_mask.map_to_mask` takes them.
        """
        with self.streams.work():
            tokens, grids = merge_grids(image.maps, classes)
            return self._marked(*map_to_mask(tokens, grids, classes, size, **rule))

    def planes(
        self, image: Inferred, classes: Sequence[int], size: tuple[int, int], *, upsample: str, normalise: str
    ) -> Tensor:
        """A localizer's normalised planes (K, H, W) on the device; ``image`` is settled."""
        with self.streams.work():
            tokens, grids = merge_grids(image.maps, classes)
            return map_planes(tokens, grids, size, upsample=upsample, normalise=normalise)

    def segments(self, image: Inferred, planes: Sequence[int], size: tuple[int, int]) -> Tensor:
        """A segmenter's class scores (len(planes), H, W), merged as ``wsss_rt.segment`` does it."""
        with self.streams.work():
            return merge_views(image.maps, planes, size)

    def decide(self, planes: Tensor, classes: Sequence[int], **rule: Any) -> Marked:
        """The mask of planes (K, H, W) on the device; waits for it.

        Args:
            planes: from this thread.
            classes: 0-based index of each.
            **rule: as :func:`wsss_rt.kernels.map_to_mask.planes_to_mask` takes it.
        """
        with self.streams.work():
            return self._marked(*planes_to_mask(planes, classes, **rule))

    def stacked(self, background: float | Tensor, planes: Tensor, *, clip: bool) -> Tensor:
        """Scores as refiners take them, (K + 1, H, W), background first; confined to 0..1 if asked."""
        with self.streams.work():
            scores = planes.new_empty((len(planes) + 1, *planes.shape[1:]))
            scores[0], scores[1:] = background, planes
            return scores.clamp_(0, 1) if clip else scores

    def to_host(self, tensor: Tensor) -> NDArray[Any]:
        """A copy on the host; waits for it."""
        with self.streams.work():
            copy = self.streams.download(tensor)
        self.streams.wait()
        return copy.numpy()

    def to_device(self, array: NDArray[Any]) -> Tensor:
        """A copy on the device, for this thread."""
        with self.streams.work():
            return self.streams.upload(array)

    def _tensor(self, pixels: NDArray[np.uint8], flip: bool) -> Tensor:
        """(B F, 3, h, w) float32: a byte costs one look-up, as on the host, and so has the same value."""
        levels = self.streams.upload(pixels).permute(0, 3, 1, 2).int() + self._channels
        images = self._table.index_select(0, levels.flatten()).view(levels.shape)
        return torch.stack((images, images.flip(-1)), dim=1).flatten(0, 1) if flip else images

    def _marked(self, mask: Tensor, sums: Tensor) -> Marked:
        host, numbers = self.streams.download(mask), self.streams.download(sums)
        self.streams.wait()
        margin, *found = numbers.tolist()
        classes = len(found) // 2
        scores = [
            total / count if count else 0.0
            for total, count in zip(found[:classes], found[classes:], strict=True)
        ]
        confidence = margin / host.numel() if classes else 0.0
        # pinned memory is scarce, and a mask may wait for the disk
        return Marked(np.array(host.numpy()), confidence, tuple(scores))


def merge_views(maps: Sequence[Tensor], planes: Sequence[int], size: tuple[int, int]) -> Tensor:
    """As ``wsss_rt.segment.merge_passes``: the mean over views of softmaxes, and back by logarithm.

    Args:
        maps: per pass (F, K, h, w); row 1, where there is one, belongs to the mirror image.
        planes: those to return; all take part in the softmax.
        size: (H, W) of the result.
    """
    chosen = list(planes)
    views = [
        _resized(row if index == 0 else row.flip(-1), size)
        for entry in maps
        for index, row in enumerate(entry)
    ]
    if len(views) == 1:
        return views[0][chosen]
    total = torch.zeros((len(chosen), *size), device=maps[0].device)
    offset = torch.zeros(size, device=maps[0].device)
    for view in views:
        peak = view.amax(dim=0)
        weights = torch.exp(view - peak)
        mass = weights.sum(dim=0)
        total += (weights / mass)[chosen]
        offset += peak + mass.log()
    # a class of probability 0 everywhere has a logarithm all the same
    mean = (total / len(views)).clamp(min=torch.finfo(torch.float32).tiny)
    return mean.log() + offset / len(views)


def _resized(scores: Tensor, size: tuple[int, int]) -> Tensor:
    scores = scores.float()
    if tuple(scores.shape[1:]) == size:
        return scores
    return functional.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
