"""What every engine looks like from outside, so that the pipeline never asks which one it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsss_rt.model_card import ModelCard


@dataclass(frozen=True)
class EngineOutput:
    """Result of one pass.

    Attributes:
        scores: (B, C) float32 logits of the whole image.
        maps: (B, C, h, w) float32 localization maps at token resolution.
    """

    scores: NDArray[np.float32]
    maps: NDArray[np.float32]


class Engine(Protocol):
    """A compiled model that is ready to run.

    Attributes:
        backend: one of :data:`wsss_rt.engines.BACKENDS`.
        device: ``cpu``, ``cuda:0``.
        precision: the precision that really runs, e.g. ``float32``.
        card: the model's card.
        choice: why this backend runs: what was asked for, what was measured; goes into run.json.
    """

    backend: str
    device: str
    precision: str
    card: ModelCard
    choice: dict[str, Any]

    def run(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run a batch; what the card's ``outputs`` name, in that order, each with the batch first.

        Raises:
            ImageError: the engine failed on this input.
        """
        ...

    def infer(self, images: NDArray[np.float32]) -> EngineOutput:
        """:meth:`run` of a localizer or segmenter.

        Args:
            images: (B, 3, H, W) float32, normalised by the card's mean and std.

        Raises:
            ImageError: the engine failed on this input.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds; it cannot be used afterwards."""
        ...


class TensorEngine(Engine, Protocol):
    """An engine whose outputs can stay on its device, as torch tensors."""

    def run_tensors(self, images: Any) -> tuple[Any, ...]:
        """:meth:`Engine.run` from device to device, on the current stream, without waiting for the device.

        Args:
            images: (B, 3, H, W) float32 tensor on ``device``.

        Returns:
            What the card's ``outputs`` name, in that order, on ``device``.

        Raises:
            RuntimeError: torch's own, for example when memory runs out.
        """
        ...
