"""How numbers are held against goldens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.models.seeded import MEAN, STD
from wsss_rt.training.models import Localizer

Array = np.ndarray[Any, Any]


def relative_error(ours: Array, golden: Array) -> float:
    """Largest difference relative to the golden's largest value; shapes must be equal."""
    assert ours.shape == golden.shape
    return float(np.abs(ours - golden).max() / np.abs(golden).max())


def generated_maps(model: Localizer, image: Array, keys: Array) -> Array:
    """Official generation at one scale: image and mirror image, upsampled, summed, min-max per class.

    Takes the image as (H, W, 3) uint8 and the present classes (K,); returns (K, H, W) in 0..1.
    """
    pixels = (image.astype(np.float32) / 255 - MEAN) / STD
    plain = torch.from_numpy(pixels.transpose(2, 0, 1))[None]
    maps = model.localize(torch.cat((plain, plain.flip(-1)))).maps
    assert maps.shape[2:] == (image.shape[0] // 16, image.shape[1] // 16)
    large = torch.nn.functional.interpolate(maps, size=image.shape[:2], mode="bilinear", align_corners=False)
    summed = (large[0] + large[1].flip(-1))[torch.from_numpy(keys.astype(np.int64))]
    low, high = summed.amin((1, 2), keepdim=True), summed.amax((1, 2), keepdim=True)
    return ((summed - low) / (high - low + 1e-8)).numpy()
