"""``--refine walk``: the random walk as a refiner, on the affinity that a model of its own sees."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from wsss_rt.engines.backends import fitting
from wsss_rt.errors import ImageError, ImageErrorCode, UsageError, WsssError
from wsss_rt.io.names import printable
from wsss_rt.localize import prepare_passes
from wsss_rt.model_card import is_package, read_artifact
from wsss_rt.refine.checks import check_input
from wsss_rt.refine.random_walk import random_walk
from wsss_rt.refine.refined import Refined
from wsss_rt.refine.walk_params import RADIUS, STRIDE, WalkParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.engines.base import Engine

KIND = "affinity"


class WalkRefiner:
    """Spreads scores over pixels that an affinity model finds alike.

    Args:
        affinity: file of an artifact of kind ``affinity``.
        params: of the walk.
        backend, precision: of the localizer; the affinity model, which is another file, runs in them where
            that can be.
        device, threads, gate: as ``open_engine`` takes them.

    Raises:
        UsageError: no affinity model is named, or the radius is larger than its own.
        WsssError: the file cannot be read, or holds a model of another kind.
    """

    def __init__(
        self,
        affinity: str | Path | None,
        params: WalkParams | None = None,
        *,
        backend: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        gate: bool = True,
    ) -> None:
        if affinity is None:
            raise UsageError(
                "--refine walk needs an affinity model",
                fix="add --affinity MODEL.onnx: train one with `wsss-rt train psa`, then `wsss-rt export`",
            )
        self.params = params or WalkParams()
        self.path = Path(affinity)
        self.card, data = read_artifact(self.path)
        if self.card.kind != KIND:
            raise WsssError(
                f"{self.path} is a {self.card.kind}",
                why="--affinity needs an affinity model",
                fix="a localizer goes to --model",
                code="wrong_kind",
            )
        reach = int(self.card.options.get("radius", RADIUS))
        if self.params.radius > reach:
            raise UsageError(f"walk-radius {self.params.radius} is more than {reach}, that of {self.path}")
        self._asked = (backend, precision)
        self._backend, self._precision = fitting(
            backend, device, precision, self.card, package=is_package(data)
        )
        self._device, self._threads, self._gate = device, threads, gate
        self._engine: Engine | None = None
        self._lock = threading.Lock()

    def warm_up(self, announce: Callable[[str], None]) -> None:
        """Open the affinity model.

        Args:
            announce: gets a line where it runs otherwise than the localizer was asked to.
        """
        with self._lock:
            engine = self._open()
        if (self._backend, self._precision) != self._asked:
            asked = " ".join(word for word in self._asked if word != "auto")
            announce(
                f"the affinity model runs in {engine.backend} {engine.precision}: "
                f"{printable(self.path)} cannot run in {asked}"
            )

    def __call__(self, image: NDArray[np.uint8], scores: NDArray[np.float32]) -> Refined:
        """Scores after the walk, of the same shape and meaning; no background is surer than another.

        Args:
            image: (H, W, 3) uint8 RGB, upright.
            scores: (C' + 1, H, W) float32 in 0..1; plane 0 is background.

        Raises:
            ImageError: the scores or the affinity hold NaN or infinity, or the engine failed.

        An image of more pixels than the affinity model may see walks at a smaller size.
        """
        check_input(image, scores)
        return Refined(self.walk(scores, *self.affinity_of(image)))

    def affinity_of(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """What the model sees in an image: affinity (K, rows, columns), and the size (H, W) that it saw.

        Args:
            image: (H, W, 3) uint8 RGB, upright.

        Raises:
            ImageError: the affinity holds NaN or infinity, or the engine failed.
        """
        tensor = prepare_passes(image, self.card.input, scales=(1.0,), flip=False)[0].images
        seen = (tensor.shape[2], tensor.shape[3])
        # whole cells, zeros after normalising: what the net was trained to see beyond an image
        below, right = (-side % STRIDE for side in seen)
        with self._lock:
            affinity = self._open().run(np.pad(tensor, ((0, 0), (0, 0), (0, below), (0, right))))[0][0]
        if not np.isfinite(affinity).all():
            raise ImageError(
                ImageErrorCode.NONFINITE_OUTPUT,
                "the affinity holds NaN or infinity for this image",
                fix="try --precision float32 or another --backend",
            )
        return affinity, seen

    def walk(
        self, scores: NDArray[np.float32], affinity: NDArray[np.float32], seen: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Scores (C' + 1, H, W) after the walk over the affinity of an image that was seen at some size."""
        walked = random_walk(_resize(scores, seen), affinity, self.params)
        return _resize(walked, (scores.shape[1], scores.shape[2]))

    def _open(self) -> Engine:
        """The engine; the caller holds the lock."""
        if self._engine is None:
            from wsss_rt.engines import open_engine

            # a trial would run a large model ten times to save little: its cost is the convolutions
            self._engine = open_engine(
                self.path,
                backend=self._backend,
                device=self._device,
                precision=self._precision,
                threads=self._threads,
                trial=False,
                gate=self._gate,
            )
        return self._engine


def _resize(scores: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Planes (C, H, W) at another size: means of areas when it is smaller, bilinear when it is larger."""
    if scores.shape[1:] == size:
        return scores
    method = cv2.INTER_AREA if size[0] * size[1] < scores[0].size else cv2.INTER_LINEAR
    planes = [cv2.resize(plane, (size[1], size[0]), interpolation=method) for plane in scores]
    return np.stack(planes).astype(np.float32)
