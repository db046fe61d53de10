"""How good a segmenter is on images that training never saw; images take the very path of labelling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsss_rt.engines.base import EngineOutput
from wsss_rt.engines.windows import windowed
from wsss_rt.localize import decide, prepare_passes
from wsss_rt.metrics import ConfusionMatrix
from wsss_rt.model_card import InputSpec, ModelCard, Recommended
from wsss_rt.segment import merge_passes, split_background
from wsss_rt.training.data.sources import Source

# the only kind of map that a segmenter has, as tables and curves name it
MASKS = "masks"


@dataclass
class _TorchEngine:
    """A model where an engine is expected."""

    model: torch.nn.Module
    card: ModelCard
    autocast: Callable[[], AbstractContextManager[Any]]
    backend: str = "torch"
    precision: str = "float32"
    device: str = ""
    choice: dict[str, Any] = field(default_factory=dict)

    def run(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        found = self.infer(images)
        return found.scores, found.maps

    def infer(self, images: NDArray[np.float32]) -> EngineOutput:
        device = next(self.model.parameters()).device
        with self.autocast():
            scores, maps = self.model(torch.from_numpy(images).to(device))
        return EngineOutput(scores.float().cpu().numpy(), maps.float().cpu().numpy())

    def close(self) -> None:
        """Nothing to free."""


@torch.no_grad()
def evaluate_segmentation(
    model: torch.nn.Module,
    dataset: Source,
    *,
    spec: InputSpec | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    tick: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Compare masks.

    Args:
        model: a segmenter, set to eval mode meanwhile.
        dataset: finite, with masks; their pixels of 255 do not count.
        spec: input policy; default native size, whole images.
        autocast: makes a context to run the model in; default float32.
        tick: called before each image; may raise to stop.

    Returns:
        ``images``; ``miou`` and ``iou`` (per class, background first, None where a class occurs nowhere)
        under the name ``masks``; ``pixel_accuracy``; all 0..1.
    """
    classes = int(model.num_classes)  # type: ignore[arg-type]
    background = bool(model.background)
    names = tuple(str(number) for number in range(classes))
    card = ModelCard("", names, kind="segmenter", input=spec or InputSpec(), has_background=background)
    engine = windowed(_TorchEngine(model, card, autocast))
    matrix = ConfusionMatrix(classes + 1)
    was_training = model.training
    model.eval()
    try:
        for index in range(dataset.count or 0):
            if tick is not None:
                tick()
            sample = dataset.load(index, mask=True)
            assert sample.mask is not None
            one = prepare_passes(sample.image, card.input, scales=(1.0,), flip=False)[0]
            merged = merge_passes([engine.infer(one.images).maps], size=sample.mask.shape)
            plane, maps = split_background(merged, has_background=background)
            matrix.update(decide(maps, range(classes), background=plane).mask, sample.mask)
    finally:
        model.train(was_training)
    iou = matrix.iou()
    correct, total = int(matrix.correct().sum()), int(matrix.truth().sum())
    return {
        "images": dataset.count,
        "miou": {MASKS: matrix.miou()},
        "iou": {MASKS: [None if np.isnan(value) else float(value) for value in iou]},
        "pixel_accuracy": correct / total if total else None,
    }


def recommend_segmenter(measured: Mapping[str, Any], *, data: str) -> Recommended:
    """Settings for the card: one pass; the provenance says how good its masks were.

    Args:
        measured: of :func:`evaluate_segmentation`; empty without validation.
        data: what it was measured on.
    """
    text = "one pass, whole; not tuned on any data"
    if measured:
        text = f"one pass; mIoU {measured['miou'][MASKS]:.3f} on {measured['images']} images of {data}"
    return Recommended(flip=False, provenance=text)
