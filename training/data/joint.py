"""Augmentation of an image together with planes that belong to its pixels: one geometry, colours apart."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from wsss_rt.errors import UsageError
from wsss_rt.training.config import Augment

Planes = list[NDArray[np.uint8]]
#: (H, W, 3) uint8 and planes (H, W) uint8 to (3, h, w) uint8, or normalised float32, and planes (h, w).
JointTransform = Callable[[NDArray[np.uint8], Planes], tuple[torch.Tensor, Planes]]
#: What can be done to an image and its planes alike.
JOINT = (Augment.NONE, Augment.FLIP, Augment.COLOR, Augment.SHORT_CROP, Augment.PAD_CROP)
#: Short side over the side of the crop: 512 px for 448.
_SHORT_SIDE = 8 / 7


def check_joint(augment: Augment) -> None:
    """Refuse an augmentation that planes cannot follow.

    Raises:
        UsageError: it is one.
    """
    if augment not in JOINT:
        raise UsageError(
            f"data.augment = {str(augment)!r} is for images alone, and these come with planes",
            fix=f"choose one of: {', '.join(JOINT)}",
        )


def joint_transform(augment: Augment, size: tuple[int, int], fills: Sequence[int] = ()) -> JointTransform:
    """The augmentation ``augment`` to ``size``.

    ``short-crop`` brings the short side to 8/7 of the crop's, keeping the shape, and takes a random crop (L2G
    on PASCAL VOC); ``pad-crop`` takes a random crop of the image as it is, or lays it at a random place where
    it is smaller, 0 after normalising around it, and mirrors half of them (PSA). Both shift colours as their
    official code does.

    Args:
        augment: one of :data:`JOINT`.
        size: (height, width) of the result.
        fills: what lies around a plane that is smaller than the crop; one per plane.

    Raises:
        UsageError: an augmentation that planes cannot follow.
    """
    check_joint(augment)
    if augment is Augment.SHORT_CROP:
        return lambda image, planes: _short_crop(image, planes, size)
    if augment is Augment.PAD_CROP:
        return lambda image, planes: _pad_crop(image, planes, size, fills)
    return lambda image, planes: _stretch(image, planes, size, augment)


def _stretch(
    image: NDArray[np.uint8], planes: Planes, size: tuple[int, int], augment: Augment
) -> tuple[torch.Tensor, Planes]:
    from wsss_rt.training.data import transforms

    image = transforms._resize(image, size)
    planes = [_nearest(plane, size) for plane in planes]
    if augment is Augment.COLOR:
        image = transforms._jitter(image)
    if augment is not Augment.NONE and random.random() < 0.5:
        image, planes = image[:, ::-1], [plane[:, ::-1] for plane in planes]
    return _tensor(image), [np.ascontiguousarray(plane) for plane in planes]


def _short_crop(
    image: NDArray[np.uint8], planes: Planes, size: tuple[int, int]
) -> tuple[torch.Tensor, Planes]:
    height, width = image.shape[:2]
    # the wanted short side, or more where the result is so long that the crop would not fit
    factor = max(_SHORT_SIDE * min(size) / min(height, width), size[0] / height, size[1] / width)
    grown = (max(size[0], round(height * factor)), max(size[1], round(width * factor)))
    pixels = Image.fromarray(image).resize((grown[1], grown[0]), Image.Resampling.BICUBIC)
    planes = [_nearest(plane, grown) for plane in planes]
    top, left = random.randint(0, grown[0] - size[0]), random.randint(0, grown[1] - size[1])
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    return _tensor(_shift_colors(pixels)[rows, columns]), [plane[rows, columns] for plane in planes]


def _pad_crop(
    image: NDArray[np.uint8], planes: Planes, size: tuple[int, int], fills: Sequence[int]
) -> tuple[torch.Tensor, Planes]:
    from wsss_rt.training.data import transforms

    pixels = _shift_colors(Image.fromarray(image))
    pairs = zip(image.shape[:2], size, strict=True)
    taken, placed = zip(*(transforms._overlap(have, want) for have, want in pairs), strict=True)
    mirror = random.random() < 0.5
    result = torch.zeros(3, *size)
    result[:, placed[0], placed[1]] = transforms.normalise(_tensor(pixels)[None])[0][:, taken[0], taken[1]]
    moved = []
    for plane, fill in zip(planes, fills, strict=True):
        whole = np.full(size, fill, np.uint8)
        whole[placed] = plane[taken]
        moved.append(np.ascontiguousarray(whole[:, ::-1]) if mirror else whole)
    return (result.flip(-1) if mirror else result), moved


def _shift_colors(pixels: Image.Image) -> NDArray[np.uint8]:
    """Brightness, contrast and saturation by up to 30 %, hue by up to a tenth of the circle."""
    from torchvision.transforms import ColorJitter

    shifted = ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1)(pixels)
    return np.asarray(shifted, np.uint8)


def _nearest(plane: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if plane.shape == size:
        return plane
    resized = Image.fromarray(plane).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized, np.uint8)


def _tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
