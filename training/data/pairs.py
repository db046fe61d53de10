"""Augmented images with the masks that segmenters learn from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from wsss_rt.classes import IGNORE
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.training.config import Augment
from wsss_rt.training.data.joint import check_joint, joint_transform
from wsss_rt.training.data.loader import AUGMENT_SEED, Key
from wsss_rt.training.data.sources import Source
from wsss_rt.training.data.transforms import local_seed


class MaskedImages(Dataset[tuple[torch.Tensor, torch.Tensor] | WsssError]):
    """Augmented images and their targets, by ``Key``; an unreadable image is its error.

    Args:
        source: with masks.
        background: whether background is an output; without it, it is unknown (255).
        augment: one of ``JOINT``.
        crop_scale: for ``light``: share of the area that a crop keeps.
        seed: of the augmentation.

    Raises:
        UsageError: a source without masks, or an augmentation of images alone.
    """

    def __init__(
        self, source: Source, *, background: bool, augment: Augment, crop_scale: Sequence[float], seed: int
    ) -> None:
        check_joint(augment)
        if not source.has_masks:
            raise UsageError("a segmenter learns from masks", fix="add --masks OUT/masks")
        self.source, self.background, self.augment = source, background, augment
        self.crop_scale, self.seed = crop_scale, seed

    def __getitem__(self, key: Key) -> tuple[torch.Tensor, torch.Tensor] | WsssError:
        """(3, height, width) image, and (height, width) uint8 outputs, 255 where unknown."""
        position, index, height, width = key
        transform = joint_transform(self.augment, (height, width), (IGNORE,), crop_scale=self.crop_scale)
        with local_seed(AUGMENT_SEED, self.seed, position):
            try:
                sample = self.source.load(index, size=(height, width), mask=True)
            except WsssError as error:
                # raised in a worker it would arrive buried in the worker's traceback
                return WsssError(str(error), code=error.code)
            # wide masks are refused where the data set is made
            image, (mask,) = transform(sample.image, [np.asarray(sample.mask, np.uint8)])
        # in eight bits 0 - 1 is 255: without its own output, background is unknown
        target = mask if self.background else np.where(mask == IGNORE, IGNORE, mask - np.uint8(1))
        return image, torch.from_numpy(np.ascontiguousarray(target))
