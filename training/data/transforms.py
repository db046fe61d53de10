"""From a decoded image to a training tensor."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from wsss_rt.errors import UsageError
from wsss_rt.training.config import Augment

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Transform = Callable[[NDArray[np.uint8]], torch.Tensor]


def build_transform(augment: Augment, size: tuple[int, int], *, crop_scale: Sequence[float]) -> Transform:
    """Augmentation that ends in a tensor of (3, *size).

    Args:
        augment: which one. ``official``: timm's random resized crop, flip, RandAugment rand-m9-mstd0.5-inc1,
            random erasing 0.25; ``squash-crop``: the whole image squashed, a random crop of it, flip;
            ``scale-pad``: flip, the long side at 0.9 to 1/0.875 of the result's, random crop or padding. For
            the others see ``joint_transform``.
        size: height and width of the result.
        crop_scale: share of the area that a crop keeps: (224 / 256)² for a crop of 224 out of 256.

    Returns:
        A function of (H, W, 3) uint8. Its result is uint8, to be normalised in batches; that of ``official``
        is float32 and normalised, because random erasing fills with normalised noise, and so are those of
        ``scale-pad`` and ``pad-crop``, whose padding is 0 after normalisation.
    """
    if augment is Augment.SCALE_CROP:
        raise UsageError(
            f"data.augment = {str(augment)!r} is for images with masks", fix="take light or official"
        )
    if augment is Augment.OFFICIAL:
        return _official(size, crop_scale)
    if augment is Augment.SQUASH_CROP:
        return partial(_squash_crop, size=size, crop_scale=crop_scale)
    if augment is Augment.SCALE_PAD:
        return partial(_scale_pad, size=size)
    from wsss_rt.training.data.joint import joint_transform

    joint = joint_transform(augment, size, crop_scale=crop_scale)
    return lambda image: joint(image, [])[0]


def normalise(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) uint8 to float32 with ImageNet's mean and deviation; float32 passes through."""
    if images.dtype != torch.uint8:
        return images
    scale = torch.tensor([1 / (255 * s) for s in STD], device=images.device).view(1, 3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)], device=images.device).view(
        1, 3, 1, 1
    )
    return torch.addcmul(shift, images.float(), scale)


@contextmanager
def local_seed(*numbers: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's generators from ``numbers``, and restore them afterwards.

    Augmentation libraries draw from the global generators; this makes what they draw a function of the
    sample's number, so that a resumed run sees the very images that an uninterrupted one sees.
    """
    kept = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.random.default_generator.manual_seed(seed % 2**63)
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.random.set_rng_state(kept[2])


def _official(size: tuple[int, int], crop_scale: Sequence[float]) -> Transform:
    from timm.data import create_transform

    apply = create_transform(
        input_size=(3, *size),
        is_training=True,
        scale=(crop_scale[0], crop_scale[1]),
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        mean=MEAN,
        std=STD,
    )

    def transform(image: NDArray[np.uint8]) -> torch.Tensor:
        tensor: torch.Tensor = apply(Image.fromarray(image))
        return tensor

    return transform


def _squash_crop(
    image: NDArray[np.uint8], *, size: tuple[int, int], crop_scale: Sequence[float]
) -> torch.Tensor:
    """As token refinement does on CUB: a square whatever the image's shape, by Pillow's bilinear filter."""
    share = random.uniform(*crop_scale) ** 0.5
    height, width = (max(side, round(side / share)) for side in size)
    squashed = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    top, left = random.randint(0, height - size[0]), random.randint(0, width - size[1])
    crop = squashed[top : top + size[0], left : left + size[1]]
    if random.random() < 0.5:
        crop = crop[:, ::-1]
    return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))


def _scale_pad(image: NDArray[np.uint8], *, size: tuple[int, int]) -> torch.Tensor:
    """As ACR does: where the image is smaller than the result it lies at a random place, 0 around it."""
    if random.random() < 0.5:
        image = np.ascontiguousarray(image[:, ::-1])
    side = max(size)
    factor = random.randint(int(0.9 * side), int(side / 0.875)) / max(image.shape[:2])
    height, width = (max(1, round(length * factor)) for length in image.shape[:2])
    scaled = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    tensor = normalise(torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))[None])[0]
    result = torch.zeros(3, *size)
    taken, placed = zip(*(overlap(*pair) for pair in zip((height, width), size, strict=True)), strict=True)
    result[:, placed[0], placed[1]] = tensor[:, taken[0], taken[1]]
    return result


def overlap(have: int, want: int) -> tuple[slice, slice]:
    """A random part of ``have`` pixels that fits ``want``, and a random place for what is smaller."""
    start = random.randint(0, max(have - want, 0))
    place = random.randint(0, max(want - have, 0))
    length = min(have, want)
    return slice(start, start + length), slice(place, place + length)


def crop_box(
    height: int, width: int, size: tuple[int, int], crop_scale: Sequence[float]
) -> tuple[int, int, int, int]:
    """A random part of an image of (height, width), to be resized to ``size``: top, left, height, width.

    It keeps a share of the area within ``crop_scale``, and its shape differs from the result's by up to 4:3.
    """
    aspect = size[1] / size[0]
    for _ in range(10):
        area = height * width * random.uniform(*crop_scale)
        ratio = aspect * np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        crop_h, crop_w = round(float(np.sqrt(area / ratio))), round(float(np.sqrt(area * ratio)))
        if 0 < crop_h <= height and 0 < crop_w <= width:
            return random.randint(0, height - crop_h), random.randint(0, width - crop_w), crop_h, crop_w
    # nothing fits a long and narrow image: take the largest crop of the right shape
    crop_h, crop_w = min(height, round(width / aspect)), min(width, round(height * aspect))
    top, left = (height - max(crop_h, 1)) // 2, (width - max(crop_w, 1)) // 2
    return top, left, max(crop_h, 1), max(crop_w, 1)


def resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 to ``size`` (height, width): area averages downwards, bicubic upwards."""
    if image.shape[:2] == tuple(size):
        return image
    shrinks = image.shape[0] > size[0]
    result = cv2.resize(
        image, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    )
    return np.asarray(result, np.uint8)


def jitter(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Brightness, contrast and a colour cast, as one look-up table per channel."""
    levels = np.arange(256, dtype=np.float32)
    contrast, brightness = random.uniform(0.75, 1.3), random.uniform(-25, 25)
    gains = np.array([random.uniform(0.9, 1.1) for _ in range(3)], np.float32)
    table = ((levels - 128) * contrast + 128 + brightness)[:, None] * gains
    return np.asarray(cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8)[:, None, :]), np.uint8)
