"""Where training images come from: files with tags, or scenes rendered on the fly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsss_rt.errors import ImageError, WsssError
from wsss_rt.formats.png import read_mask
from wsss_rt.io.decode import DecodedImage, decode_image, read_bytes, to_upright

# left, top, right, bottom
Box = tuple[int, int, int, int]
# (H, W): 0 background, class index + 1, 255 ignore; of more than 254 classes 16 bits, and 65535 ignore
Mask = NDArray[np.uint8] | NDArray[np.uint16]


class DrawnMask(Protocol):
    """A mask that is no file of its own: it is drawn from outlines when somebody asks for it."""

    def draw(self) -> Mask:
        """The mask; a WsssError where it cannot be drawn."""
        ...


@dataclass(frozen=True)
class Sample:
    """One image and what is known of it.

    Attributes:
        image: (H, W, 3) uint8 RGB, upright.
        tags: 0-based class indices that the image shows.
        mask: see :data:`Mask`; None where there is none.
        name: for messages.
        boxes: (K, 4) int64 true boxes, see :class:`Item`; None where there are none.
        orientation: EXIF orientation that was applied, for planes in the raster of the file.
    """

    image: NDArray[np.uint8]
    tags: tuple[int, ...]
    mask: Mask | None
    name: str
    boxes: NDArray[np.int64] | None = None
    orientation: int = 1


class Source(Protocol):
    """Images by number; the same number gives the same sample, in any process.

    Attributes:
        count: how many there are; None for endless.
        has_masks: whether samples carry masks.
    """

    count: int | None
    has_masks: bool

    def load(self, index: int, *, size: tuple[int, int] | None = None, mask: bool = False) -> Sample:
        """Sample ``index``; ``size`` (height, width) is a wish that only generated images can fulfil."""
        ...


@dataclass(frozen=True)
class Item:
    """A file with its tags.

    Attributes:
        path: the image.
        name: path below the data folder, for messages.
        tags: 0-based class indices.
        mask: its mask, where there is one.
        boxes: true boxes as the data set publishes them, which is what official evaluations scale: left, top,
            right, bottom in pixels of the stored image, cut to integers. Right and bottom are exclusive in
            CUB (left + width, top + height), and the last pixel of the object in ILSVRC.
    """

    path: Path
    name: str
    tags: tuple[int, ...]
    mask: Path | DrawnMask | None = None
    boxes: tuple[Box, ...] = ()


class FileSource:
    """Image files with tags.

    Args:
        items: the images.
        wide: masks are of more than 254 classes.
        max_pixels: a larger image is refused.
    """

    def __init__(self, items: Sequence[Item], *, wide: bool = False, max_pixels: int = 100_000_000) -> None:
        self.items = list(items)
        self.count: int | None = len(self.items)
        self.has_masks = bool(self.items) and all(item.mask is not None for item in self.items)
        self._wide, self._max_pixels = wide, max_pixels

    def load(self, index: int, *, size: tuple[int, int] | None = None, mask: bool = False) -> Sample:
        """Decode image ``index`` as labelling would, EXIF orientation applied to it and to its mask.

        Raises:
            WsssError: the file cannot be decoded, or the mask has another size; it is named.
        """
        item = self.items[index]
        decoded = _decode(item.path, item.name, max_pixels=self._max_pixels)
        image = decoded.upright
        truth: Mask | None = None
        if mask and item.mask is not None:
            path = item.mask
            stored = read_mask(path, wide=self._wide) if isinstance(path, Path) else path.draw()
            truth = to_upright(stored, decoded.orientation)
        if truth is not None and truth.shape != image.shape[:2]:
            raise WsssError(
                f"the mask {item.mask} is {truth.shape[1]}x{truth.shape[0]}",
                why=f"its image {item.name} is {image.shape[1]}x{image.shape[0]}",
                code="mask_size",
            )
        boxes = np.array(item.boxes, np.int64).reshape(-1, 4) if item.boxes else None
        return Sample(image, item.tags, truth, item.name, boxes, decoded.orientation)


class SceneSource:
    """Scenes rendered when they are asked for.

    Args:
        seed: of the generator.
        count: None for as many as anybody wants.
        close_ups: as many scenes at the beginning show one large object and nothing else.
    """

    has_masks = True

    def __init__(self, seed: int, *, count: int | None = None, close_ups: int = 0) -> None:
        self.seed, self.count, self.close_ups = seed, count, close_ups

    def load(self, index: int, *, size: tuple[int, int] | None = None, mask: bool = False) -> Sample:
        """Scene ``index``, of ``size`` (height, width) or of the generator's own choice."""
        from wsss_rt.scenes import render_scene

        height, width = size or (None, None)
        close_up = index < self.close_ups
        scene = render_scene(self.seed, index, height=height, width=width, close_up=close_up)
        return Sample(scene.image, tuple(scene.tags), scene.mask if mask else None, f"scene {index}")


class Cached:
    """Keeps the samples of a small source in memory, for validation that comes again and again."""

    def __init__(self, source: Source) -> None:
        if source.count is None:
            raise ValueError("an endless source cannot be kept in memory")
        self.count: int | None = source.count
        self.has_masks = source.has_masks
        self._source = source
        self._kept: dict[int, Sample] = {}

    def load(self, index: int, *, size: tuple[int, int] | None = None, mask: bool = True) -> Sample:
        """The sample with its mask, at the source's own size."""
        if index not in self._kept:
            self._kept[index] = self._source.load(index, mask=self.has_masks)
        return self._kept[index]


def read_rgb(path: Path, name: str, *, max_pixels: int = 100_000_000) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB, upright.

    Raises:
        WsssError: naming the file and what is wrong with it.
    """
    return _decode(path, name, max_pixels=max_pixels).upright


def _decode(path: Path, name: str, *, max_pixels: int) -> DecodedImage:
    try:
        return decode_image(read_bytes(path), max_pixels=max_pixels)
    except ImageError as error:
        raise WsssError(
            f"cannot read the training image {name}",
            why=f"{error.code}: {error.what}",
            fix="replace it or take it out of the tags",
            code="bad_image",
        ) from error
