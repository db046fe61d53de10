"""Augmentation of an image together with planes that belong to its pixels: one geometry, colours apart."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from wsss_rt.classes import IGNORE
from wsss_rt.errors import UsageError
from wsss_rt.training.config import Augment
from wsss_rt.training.data.transforms import MEAN, crop_box, jitter, normalise, overlap, resize

Pixels = NDArray[np.uint8]
Planes = list[NDArray[np.uint8]]
#: (H, W, 3) uint8 and planes (H, W) uint8 to (3, h, w) uint8, or normalised float32, and planes (h, w).
JointTransform = Callable[[Pixels, Planes], tuple[torch.Tensor, Planes]]
#: What can be done to an image and its planes alike.
JOINT = (
    Augment.NONE,
    Augment.FLIP,
    Augment.COLOR,
    Augment.LIGHT,
    Augment.SCALE_CROP,
    Augment.SHORT_CROP,
    Augment.PAD_CROP,
)
# short side over the side of the crop: 512 px for 448
_SHORT_SIDE = 8 / 7
# what surrounds an image that is smaller than its crop: 0 once it is normalised, up to rounding
_PADDING = tuple(round(255 * value) for value in MEAN)
# no class may fill more of a crop than this, where another try helps (mmsegmentation's cat_max_ratio)
_MOST_OF_ONE_CLASS, _TRIES = 0.75, 10


def check_joint(augment: Augment) -> None:
    """Refuse an augmentation that planes cannot follow.

    Raises:
        UsageError: it is one.
    """
    if augment not in JOINT:
        raise UsageError(
            f"data.augment = {str(augment)!r} is for images alone, and these come with masks or planes",
            fix=f"choose one of: {', '.join(JOINT)}",
        )


def joint_transform(
    augment: Augment,
    size: tuple[int, int],
    fills: Sequence[int] = (),
    *,
    crop_scale: Sequence[float] = (1.0, 1.0),
) -> JointTransform:
    """The augmentation ``augment`` to ``size``.

    ``light``: random resized crop, flip, colour; ``scale-crop``: 0.5 to 2 times the size at which the image
    covers the result, a random crop in which no class of the masks fills more than three quarters where ten
    tries find one, filled up, flip, colour, as mmsegmentation trains SegViT; ``color``, ``flip``, ``none``:
    the whole image, squashed. ``short-crop`` brings the short side to 8/7 of the crop's, keeping the shape,
    and takes a random crop (L2G on PASCAL VOC); ``pad-crop`` takes a random crop of the image as it is, or
    lays it at a random place where it is smaller, 0 after normalising around it, and mirrors half of them
    (PSA). These two shift colours as their official code does.

    Args:
        augment: one of :data:`JOINT`.
        size: (height, width) of the result.
        fills: what lies around a plane that is smaller than the crop; one per plane. A plane that is filled
            with 255 is a mask: its values are classes, and 255 is unknown.
        crop_scale: of ``light``: share of the area that a crop keeps.

    Raises:
        UsageError: an augmentation that planes cannot follow.
    """
    check_joint(augment)
    if augment is Augment.SHORT_CROP:
        return lambda image, planes: _short_crop(image, planes, size)
    if augment is Augment.PAD_CROP:
        return lambda image, planes: _pad_crop(image, planes, size, fills)
    return lambda image, planes: _stretch(image, planes, size, fills, augment, crop_scale)


def _stretch(
    image: Pixels,
    planes: Planes,
    size: tuple[int, int],
    fills: Sequence[int],
    augment: Augment,
    crop_scale: Sequence[float],
) -> tuple[torch.Tensor, Planes]:
    if augment is Augment.LIGHT:
        top, left, height, width = crop_box(image.shape[0], image.shape[1], size, crop_scale)
        image, *planes = (part[top : top + height, left : left + width] for part in (image, *planes))
    if augment is Augment.SCALE_CROP:
        image, planes = _scale_crop(image, planes, size, fills)
    image, planes = resize(image, size), [_nearest(plane, size) for plane in planes]
    if augment in (Augment.LIGHT, Augment.COLOR, Augment.SCALE_CROP):
        image = jitter(image)
    if augment is not Augment.NONE and random.random() < 0.5:
        image, planes = image[:, ::-1], [plane[:, ::-1] for plane in planes]
    return _tensor(image), [np.ascontiguousarray(plane) for plane in planes]


def _scale_crop(
    image: Pixels, planes: Planes, size: tuple[int, int], fills: Sequence[int]
) -> tuple[Pixels, Planes]:
    height, width = image.shape[:2]
    factor = max(size[0] / height, size[1] / width) * random.uniform(0.5, 2.0)
    scaled = (max(1, round(height * factor)), max(1, round(width * factor)))
    image, planes = resize(image, scaled), [_nearest(plane, scaled) for plane in planes]
    below, right = max(size[0] - scaled[0], 0), max(size[1] - scaled[1], 0)
    if below or right:
        # the image first, at the top left, as mmsegmentation pads
        image = _filled_up(image, below, right, _PADDING)
        planes = [_filled_up(plane, below, right, fill) for plane, fill in zip(planes, fills, strict=True)]
    masks = [plane for plane, fill in zip(planes, fills, strict=True) if fill == IGNORE]
    for _ in range(_TRIES):
        top = random.randint(0, image.shape[0] - size[0])
        left = random.randint(0, image.shape[1] - size[1])
        rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
        if all(_is_mixed(mask[rows, columns]) for mask in masks):
            break
    return image[rows, columns], [plane[rows, columns] for plane in planes]


def _is_mixed(mask: Pixels) -> bool:
    counts = np.bincount(mask[mask != IGNORE], minlength=1)
    return bool(np.count_nonzero(counts) > 1 and counts.max() < _MOST_OF_ONE_CLASS * counts.sum())


def _filled_up(pixels: Pixels, below: int, right: int, value: int | Sequence[int]) -> Pixels:
    border = cv2.BORDER_CONSTANT
    return np.asarray(cv2.copyMakeBorder(pixels, 0, below, 0, right, border, value=value), np.uint8)


def _short_crop(image: Pixels, planes: Planes, size: tuple[int, int]) -> tuple[torch.Tensor, Planes]:
    height, width = image.shape[:2]
    # the wanted short side, or more where the result is so long that the crop would not fit
    factor = max(_SHORT_SIDE * min(size) / min(height, width), size[0] / height, size[1] / width)
    grown = (max(size[0], round(height * factor)), max(size[1], round(width * factor)))
    pixels = Image.fromarray(image).resize((grown[1], grown[0]), Image.Resampling.BICUBIC)
    planes = [_nearest(plane, grown) for plane in planes]
    top, left = random.randint(0, grown[0] - size[0]), random.randint(0, grown[1] - size[1])
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    cropped = [np.ascontiguousarray(plane[rows, columns]) for plane in planes]
    return _tensor(_shift_colors(pixels)[rows, columns]), cropped


def _pad_crop(
    image: Pixels, planes: Planes, size: tuple[int, int], fills: Sequence[int]
) -> tuple[torch.Tensor, Planes]:
    pixels = _shift_colors(Image.fromarray(image))
    pairs = zip(image.shape[:2], size, strict=True)
    taken, placed = zip(*(overlap(have, want) for have, want in pairs), strict=True)
    mirror = random.random() < 0.5
    result = torch.zeros(3, *size)
    result[:, placed[0], placed[1]] = normalise(_tensor(pixels)[None])[0][:, taken[0], taken[1]]
    moved = []
    for plane, fill in zip(planes, fills, strict=True):
        whole = np.full(size, fill, np.uint8)
        whole[placed] = plane[taken]
        moved.append(np.ascontiguousarray(whole[:, ::-1]) if mirror else whole)
    return (result.flip(-1) if mirror else result), moved


def _shift_colors(pixels: Image.Image) -> Pixels:
    """Brightness, contrast and saturation by up to 30 %, hue by up to a tenth of the circle."""
    from torchvision.transforms import ColorJitter

    shifted = ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1)(pixels)
    return np.asarray(shifted, np.uint8)


def _nearest(plane: Pixels, size: tuple[int, int]) -> Pixels:
    if plane.shape == tuple(size):
        return plane
    return np.asarray(cv2.resize(plane, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def _tensor(image: Pixels) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
