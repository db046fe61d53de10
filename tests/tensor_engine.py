"""The colour model of ``label_models.py`` in torch: an engine whose outputs can stay on their device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tests.label_models import BIAS, PATCH, color_card
from wsss_rt.engines.base import EngineOutput
from wsss_rt.model_card import ModelCard


class TensorColorEngine:
    """Red, green and blue, with faults on demand.

    Args:
        card: see :func:`color_card`; classes beyond three are nowhere.
        max_batch: larger batches fail as torch does when memory runs out.

    Attributes:
        batches: batch sizes that it was called with.
        poison: where it gives NaN for images whose first pixel is this one: ``scores`` or ``maps``.
    """

    backend, device, precision = "torch", "cpu", "float32"

    def __init__(self, *, card: ModelCard | None = None, max_batch: int = 64) -> None:
        self.card, self.max_batch = card or color_card(), max_batch
        self.choice: dict[str, Any] = {"why": "test"}
        self.batches: list[int] = []
        self.poison: tuple[str, NDArray[np.float32]] | None = None

    def run_tensors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Token means, minus half of the other channels; a segmenter's maps have a background and pixels."""
        self.batches.append(len(images))
        if len(images) > self.max_batch:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        pooled = functional.avg_pool2d(images, PATCH)
        evidence = 1.5 * pooled - 0.5 * pooled.sum(dim=1, keepdim=True) - BIAS
        nowhere = evidence.new_full((len(images), len(self.card.classes) - 3, *evidence.shape[2:]), -BIAS)
        evidence = torch.cat((evidence, nowhere), dim=1)
        scores, maps = evidence.amax(dim=(2, 3)), evidence.clamp(min=0)
        if self.card.kind == "segmenter":
            # two views that each see another colour would tie exactly, and rounding would decide
            maps = maps * torch.tensor([1.0, 1.01, 1.03])[:, None, None]
            maps = functional.pad(maps, (0, 0, 0, 0, 1, 0), value=0.4) if self.card.has_background else maps
            maps = functional.interpolate(maps, images.shape[2:], mode="nearest")
        if self.poison is not None:
            name, first = self.poison
            hit = (images[:, :, 0, 0] == torch.from_numpy(first)).all(dim=1)
            (scores if name == "scores" else maps)[hit] = torch.nan
        return scores, maps

    def infer(self, images: NDArray[np.float32]) -> EngineOutput:
        """The same, as arrays."""
        scores, maps = self.run_tensors(torch.from_numpy(images))
        return EngineOutput(scores.numpy(), maps.numpy())

    def close(self) -> None:
        """Nothing to free."""
