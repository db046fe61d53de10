"""Augmented images with their masks: the same crop and mirror for both, colours for the image alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from wsss_rt.classes import IGNORE
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.training.config import Augment
from wsss_rt.training.data.loader import AUGMENT_SEED, Key
from wsss_rt.training.data.sources import Source
from wsss_rt.training.data.transforms import MEAN, crop_box, jitter, local_seed, resize

Image = NDArray[np.uint8]
PairTransform = Callable[[Image, Image], tuple[Image, Image]]
PAIRED = (Augment.NONE, Augment.FLIP, Augment.COLOR, Augment.LIGHT, Augment.SCALE_CROP)
# what surrounds an image that is smaller than its crop: 0 once it is normalised, up to rounding
_PADDING = tuple(round(255 * value) for value in MEAN)
# no class may fill more of a crop than this, where another try helps (mmsegmentation's cat_max_ratio)
_MOST_OF_ONE_CLASS, _TRIES = 0.75, 10


class MaskedImages(Dataset[tuple[torch.Tensor, torch.Tensor] | WsssError]):
    """Augmented images and their targets, by ``Key``; an unreadable image is its error.

    Args:
        source: with masks.
        background: whether background is an output; without it, it is unknown (255).
        augment: one of :data:`PAIRED`.
        crop_scale: for ``light``: share of the area that a crop keeps.
        seed: of the augmentation.

    Raises:
        UsageError: a source without masks, or an augmentation of images alone.
    """

    def __init__(
        self, source: Source, *, background: bool, augment: Augment, crop_scale: Sequence[float], seed: int
    ) -> None:
        check_augment(augment)
        if not source.has_masks:
            raise UsageError("a segmenter learns from masks", fix="add --masks OUT/masks")
        self.source, self.background, self.augment = source, background, augment
        self.crop_scale, self.seed = crop_scale, seed

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, torch.Tensor] | WsssError:
        """(3, height, width) uint8, and (height, width) uint8 outputs, 255 where unknown."""
        position, index, height, width = key
        transform = build_pair_transform(self.augment, (height, width), crop_scale=self.crop_scale)
        with local_seed(AUGMENT_SEED, self.seed, position):
            try:
                sample = self.source.load(index, size=(height, width), mask=True)
            except WsssError as error:
                # raised in a worker it would arrive buried in the worker's traceback
                return WsssError(str(error), code=error.code)
            # wide masks are refused where the data set is made
            image, mask = transform(sample.image, np.asarray(sample.mask, np.uint8))
        # in eight bits 0 - 1 is 255: without its own output, background is unknown
        target = mask if self.background else np.where(mask == IGNORE, IGNORE, mask - np.uint8(1))
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1))
        return torch.from_numpy(pixels), torch.from_numpy(np.ascontiguousarray(target))


def check_augment(augment: Augment) -> None:
    """Refuse an augmentation that moves pixels of the image and not those of the mask.

    Raises:
        UsageError: it is not one of :data:`PAIRED`.
    """
    if augment not in PAIRED:
        raise UsageError(
            f"data.augment = {str(augment)!r} does not know masks",
            fix=f"for segmenters take one of: {', '.join(PAIRED)}",
        )


def build_pair_transform(
    augment: Augment, size: tuple[int, int], *, crop_scale: Sequence[float]
) -> PairTransform:
    """Augmentation of an image (H, W, 3) and its mask (H, W) to ``size`` (height, width); both stay uint8.

    ``light``: random resized crop, flip, colour; ``scale-crop``: 0.5 to 2 times the size at which the image
    covers the result, a random crop in which no class fills more than three quarters where ten tries find
    one, padding (255 in the mask), flip, colour, as mmsegmentation trains SegViT; ``color``, ``flip``,
    ``none``: the whole image, squashed.
    """

    def transform(image: Image, mask: Image) -> tuple[Image, Image]:
        if augment is Augment.LIGHT:
            top, left, height, width = crop_box(image.shape[0], image.shape[1], size, crop_scale)
            image, mask = (part[top : top + height, left : left + width] for part in (image, mask))
        if augment is Augment.SCALE_CROP:
            image, mask = _scale_crop(image, mask, size)
        image, mask = resize(image, size), _resize_mask(mask, size)
        if augment in (Augment.LIGHT, Augment.COLOR, Augment.SCALE_CROP):
            image = jitter(image)
        if augment is not Augment.NONE and random.random() < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        return image, mask

    return transform


def _scale_crop(image: Image, mask: Image, size: tuple[int, int]) -> tuple[Image, Image]:
    height, width = image.shape[:2]
    factor = max(size[0] / height, size[1] / width) * random.uniform(0.5, 2.0)
    scaled = (max(1, round(height * factor)), max(1, round(width * factor)))
    image, mask = resize(image, scaled), _resize_mask(mask, scaled)
    below, right = max(size[0] - scaled[0], 0), max(size[1] - scaled[1], 0)
    if below or right:
        # the image first, at the top left, as mmsegmentation pads
        border = cv2.BORDER_CONSTANT
        image = np.asarray(cv2.copyMakeBorder(image, 0, below, 0, right, border, value=_PADDING), np.uint8)
        mask = np.asarray(cv2.copyMakeBorder(mask, 0, below, 0, right, border, value=IGNORE), np.uint8)
    for _ in range(_TRIES):
        top = random.randint(0, image.shape[0] - size[0])
        left = random.randint(0, image.shape[1] - size[1])
        part = mask[top : top + size[0], left : left + size[1]]
        counts = np.bincount(part[part != IGNORE], minlength=1)
        if np.count_nonzero(counts) > 1 and counts.max() < _MOST_OF_ONE_CLASS * counts.sum():
            break
    return image[top : top + size[0], left : left + size[1]], part


def _resize_mask(mask: Image, size: tuple[int, int]) -> Image:
    if mask.shape == tuple(size):
        return mask
    return np.asarray(cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
