"""A tiny real model for tests of `label`: it finds red, green and blue; sealed ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsss_rt.engines.base import EngineOutput
from wsss_rt.errors import ImageError, ImageErrorCode
from wsss_rt.model_card import InputSpec, ModelCard, Recommended, seal

COLORS = ("red", "green", "blue")
PATCH = 8
# gray shows no class
BIAS = 0.5


def color_card(**changes: Any) -> ModelCard:
    """Card of the model."""
    fields: dict[str, Any] = {
        "method": "color-probe",
        "classes": COLORS,
        "colors": ((255, 0, 0), (0, 255, 0), (0, 0, 255)),
        "input": InputSpec(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), patch=PATCH),
        "recommended": Recommended(
            background=0.4, tag_thresholds=(0.5, 0.5, 0.5), provenance="made for tests"
        ),
    }
    return ModelCard(**(fields | changes))


def write_color_model(path: Path, *, places: tuple[int, int, int] = (0, 1, 2), **changes: Any) -> Path:
    """Write the model: token means, minus the other two channels, as maps; their peak as logits.

    Args:
        path: the artifact.
        places: 0-based indices of red, green and blue among the card's classes; all others are nowhere.
        **changes: fields of the card.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    classes = len(changes.get("classes", COLORS))
    weight = np.zeros((classes, 3, 1, 1), np.float32)
    weight[list(places)] = -0.5
    weight[places, range(3)] = 1.0
    nodes = [
        helper.make_node(
            "AveragePool", ["images"], ["pooled"], kernel_shape=[PATCH, PATCH], strides=[PATCH, PATCH]
        ),
        helper.make_node("Conv", ["pooled", "weight", "bias"], ["evidence"], kernel_shape=[1, 1]),
        helper.make_node("Relu", ["evidence"], ["maps"]),
        helper.make_node("GlobalMaxPool", ["evidence"], ["peak"]),
        helper.make_node("Flatten", ["peak"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "color-probe",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", classes]),
            helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["batch", classes, "rows", "columns"]),
        ],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.full(classes, -BIAS, np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    path.write_bytes(seal(model.SerializeToString(), color_card(**changes)))
    return path


class ColorEngine:
    """The same model in numpy, with faults on demand.

    Args:
        max_batch: larger batches fail as if the device had run out of memory.
        card: see :func:`color_card`.

    Attributes:
        batches: batch sizes that it was called with.
        poison: an input that equals this one in its first pixel gives NaN.
    """

    backend, device, precision = "fake", "cpu", "float32"

    def __init__(self, *, max_batch: int = 64, card: ModelCard | None = None) -> None:
        self.card = card or color_card()
        self.choice: dict[str, Any] = {"why": "test"}
        self.max_batch = max_batch
        self.batches: list[int] = []
        self.poison: NDArray[np.float32] | None = None

    def infer(self, images: NDArray[np.float32]) -> EngineOutput:
        """Token means, minus half of the other channels."""
        self.batches.append(len(images))
        if len(images) > self.max_batch:
            raise ImageError(ImageErrorCode.OUT_OF_MEMORY, "the fake device is full")
        rows, columns = images.shape[2] // PATCH, images.shape[3] // PATCH
        cut = images[:, :, : rows * PATCH, : columns * PATCH]
        pooled = cut.reshape(len(images), 3, rows, PATCH, columns, PATCH).mean(axis=(3, 5))
        evidence = 1.5 * pooled - 0.5 * pooled.sum(axis=1, keepdims=True) - np.float32(BIAS)
        scores = evidence.max(axis=(2, 3))
        if self.poison is not None:
            for image, score in zip(images, scores, strict=True):
                if np.array_equal(image[:, 0, 0], self.poison):
                    score[:] = np.nan
        return EngineOutput(scores, np.maximum(evidence, 0))

    def close(self) -> None:
        """Nothing to free."""


def blocks(seed: int = 0, *, height: int = 64, width: int = 96) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 RGB: gray noise with a red, a green and a blue rectangle, where seeded."""
    random = np.random.default_rng(seed)
    image = random.integers(90, 110, (height, width, 3), dtype=np.uint8)
    for channel in range(3):
        if channel and random.random() < 0.3:
            continue
        top, left = random.integers(0, height // 2), random.integers(0, width // 2)
        patch = image[top : top + height // 2, left : left + width // 3]
        patch[:] = 25
        patch[..., channel] = 230
    return image


def tied() -> NDArray[np.uint8]:
    """(64, 96, 3) uint8 RGB: five twelfths lie at the background's score, 0.4 of the peak."""
    image = np.full((64, 96, 3), 100, np.uint8)
    image[:, :48] = (250, 10, 10)
    # red enough for 0.4 of the peak, as bfloat16 sees it
    image[:, 48:88] = (215, 100, 100)
    return image
