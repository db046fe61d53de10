"""Weights and images by the rules that the goldens were made with; nothing needs to be stored."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import torch

MEAN = np.array((0.485, 0.456, 0.406), dtype=np.float32)
STD = np.array((0.229, 0.224, 0.225), dtype=np.float32)
IMAGE_SEEDS = {"224x224": 0, "192x320": 1}
_NORMS = ("norm1.weight", "norm2.weight", "norm3.weight", "norm.weight")


def seeded_state(shapes: Mapping[str, tuple[int, ...]], scale: float) -> dict[str, torch.Tensor]:
    """State dict whose values depend on nothing but each key and ``scale``."""
    state = {}
    for key, shape in shapes.items():
        generator = np.random.default_rng(zlib.crc32(key.encode()))
        values = generator.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        if key.endswith(_NORMS):
            values += np.float32(1)
        state[key] = torch.from_numpy(values)
    return state


def seeded_images(seed: int, height: int, width: int) -> torch.Tensor:
    """(1, 3, H, W) float32: uniform noise, normalised."""
    noise = np.random.default_rng(seed).random((3, height, width), dtype=np.float32)
    return torch.from_numpy((noise - MEAN[:, None, None]) / STD[:, None, None])[None]


def seeded_conv_state(
    shapes: Mapping[str, tuple[int, ...]], scale: float | None, *, prefix: str = "", noisy_norms: bool = False
) -> dict[str, torch.Tensor]:
    """State dict of a net with batch norms, by the rule of L2G's goldens, or with ``noisy_norms`` of PSA's.

    A scale of None is their set "lecun": convolutions drawn at 1 / sqrt(inputs), the rest at 0.02. Keys are
    drawn under ``prefix``.
    """
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros((), dtype=torch.int64)
            continue
        generator = np.random.default_rng(zlib.crc32((prefix + key).encode()))
        spread = np.float32(0.02 if scale is None else scale)
        if scale is None and len(shape) > 1:
            spread = np.float32(1 / np.sqrt(np.prod(shape[1:])))
        values = generator.standard_normal(shape, dtype=np.float32) * spread
        if len(shape) == 1 and key.endswith(".weight"):
            values += np.float32(1)
        if key.endswith("running_var"):
            values = np.float32(1) + np.abs(values) if noisy_norms else np.ones_like(values)
        elif key.endswith("running_mean") and not noisy_norms:
            values = np.zeros_like(values)
        state[key] = torch.from_numpy(values)
    return state
