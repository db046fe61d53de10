"""Official augmentations: what a crop keeps, where an image lies, what is around it."""

from __future__ import annotations

import numpy as np
import torch

from wsss_rt.training.config import Augment
from wsss_rt.training.data.transforms import MEAN, STD, build_transform, local_seed, normalise


def ramp(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8: red rises from left to right, green from top to bottom, blue is 255."""
    red = np.broadcast_to(np.linspace(0, 255, width)[None], (height, width))
    green = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return np.stack([red, green, np.full((height, width), 255)], -1).astype(np.uint8)


def test_squash_crop_keeps_224_of_256_of_both_sides() -> None:
    transform = build_transform(Augment.SQUASH_CROP, (224, 224), crop_scale=[0.765625, 0.765625])
    flipped = 0
    starts = set()
    for seed in range(12):
        with local_seed(seed):
            tensor = transform(ramp(150, 600))
        assert tensor.shape == (3, 224, 224) and tensor.dtype == torch.uint8
        across, down = tensor[0, 100].float(), tensor[1, :, 100].float()
        # whatever the shape of the image, seven eighths of its width and of its height
        for line in (across, down):
            assert abs(abs(float(line[-1] - line[0])) - 255 * 224 / 256) < 4
        flipped += bool(across[0] > across[-1])
        starts.add(int(down[0]))
    assert 0 < flipped < 12 and len(starts) > 3


def test_scale_pad_surrounds_with_zeros_after_normalisation() -> None:
    transform = build_transform(Augment.SCALE_PAD, (64, 64), crop_scale=[0.4, 1.0])
    blue = (1.0 - MEAN[2]) / STD[2]
    heights, widths = set(), set()
    for seed in range(30):
        with local_seed(seed):
            tensor = transform(ramp(100, 200))
        assert tensor.shape == (3, 64, 64) and tensor.dtype == torch.float32
        inside = tensor[2] != 0
        assert torch.allclose(tensor[2][inside], torch.tensor(blue), atol=1e-4)
        assert not tensor[:, ~inside].any()
        rows, columns = inside.any(1).sum(), inside.any(0).sum()
        assert int(rows) * int(columns) == int(inside.sum())
        heights.add(int(rows))
        widths.add(int(columns))
    # the long side at int(0.9 * 64) .. int(64 / 0.875), then cut to 64; the other at half of it
    assert min(widths) >= 57 and max(widths) == 64 and min(heights) >= 28 and max(heights) <= 37
    assert torch.equal(normalise(tensor[None]), tensor[None])
