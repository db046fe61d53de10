"""``--refine crf``: the dense CRF as a refiner; imports numba only when the first image comes."""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from wsss_rt.errors import MissingExtraError, UsageError, nearest
from wsss_rt.refine.memory import DEFAULT_MEMORY, GIGABYTE
from wsss_rt.refine.params import CrfParams, crf_params
from wsss_rt.refine.refined import Refined

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# numba: ours. pydensecrf: the package that the literature used, for comparison
BACKENDS = ("numba", "pydensecrf")
COMPILING = (
    "compiling the CRF for this processor; this happens once and may take minutes, "
    "later runs load it from the disk"
)

_log = logging.getLogger(__name__)


class CrfRefiner:
    """Replaces scores by the marginals of a dense CRF.

    Args:
        params: kernels, steps, and how the background's score is made; None takes the default preset.
        backend: one of :data:`BACKENDS`.
        memory: gigabytes beyond which an image is refused; None is ``DEFAULT_MEMORY`` here, and on a GPU no
            limit but its own.

    Attributes:
        memory: bytes, where they were given.

    Raises:
        UsageError: no such backend, or a memory limit or early stop that it does not have.
        MissingExtraError: the backend's package is not installed.
    """

    def __init__(
        self,
        params: CrfParams | None = None,
        *,
        backend: str = "numba",
        memory: float | None = None,
    ) -> None:
        if backend not in BACKENDS:
            raise UsageError(f"no CRF backend named {backend!r}", fix=nearest(backend, BACKENDS))
        if backend == "pydensecrf" and importlib.util.find_spec("pydensecrf") is None:
            raise MissingExtraError("--crf-backend pydensecrf", extra="crf-reference", package="pydensecrf2")
        self.params, self.backend = params or crf_params(), backend
        self.memory = None if memory is None else memory * GIGABYTE
        if backend == "pydensecrf" and self.params.stop:
            raise UsageError("pydensecrf has no early stop", fix="leave out --crf-stop or --crf-backend")
        if backend == "pydensecrf" and memory is not None:
            raise UsageError(
                "pydensecrf takes what memory it needs, without a limit",
                fix="leave out --crf-memory or --crf-backend",
            )
        self._warm = backend != "numba"
        self._lock = threading.Lock()

    def warm_up(self, announce: Callable[[str], None]) -> None:
        """Compile or load what an image needs, so that no image waits for it.

        Args:
            announce: gets a line before anything is compiled; not called where the disk has all.
        """
        with self._lock:
            if self._warm:
                return
            import numpy as np

            from wsss_rt.jit import compiling_told
            from wsss_rt.refine.dense_crf import dense_crf

            with compiling_told(lambda: announce(COMPILING)):
                dense_crf(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 2), 0.5, np.float32), self.params)
            self._warm = True

    def __call__(self, image: NDArray[np.uint8], scores: NDArray[np.float32]) -> Refined:
        """Marginals of background and classes, which sum to 1.

        Args:
            image: (H, W, 3) uint8 RGB, upright.
            scores: (C' + 1, H, W) float32 in 0..1; plane 0 is background.

        Returns:
            Marginals at ``params.alpha``; with ``params.high_alpha``, background is sure where it wins there.

        Raises:
            ImageError: ``nonfinite_output``: the scores hold NaN or infinity; ``out_of_memory``: the image
                needs more than the limit.

        One thread per image: the pipeline already refines as many images at once as it may use threads.
        """
        alphas = [self.params.alpha]
        if self.params.high_alpha is not None:
            alphas.append(self.params.high_alpha)
        found = self._marginals(image, [_with_background(scores, alpha) for alpha in alphas])
        return Refined(found[0], found[1].argmax(axis=0) == 0 if len(found) > 1 else None)

    def _marginals(
        self, image: NDArray[np.uint8], several: list[NDArray[np.float32]]
    ) -> list[NDArray[np.float32]]:
        if self.backend == "pydensecrf":
            from wsss_rt.refine import pydensecrf_backend

            return [pydensecrf_backend.dense_crf(image, scores, self.params) for scores in several]
        self.warm_up(_log.warning)
        from wsss_rt.refine.dense_crf import dense_crf_each

        limit = DEFAULT_MEMORY * GIGABYTE if self.memory is None else self.memory
        return dense_crf_each(image, several, self.params, memory_limit=limit)


def _with_background(scores: NDArray[np.float32], alpha: float | None) -> NDArray[np.float32]:
    if alpha is None or len(scores) == 1:
        return scores
    scores = scores.copy()
    scores[0] = (1 - scores[1:].max(axis=0)).clip(0, 1) ** alpha
    return scores
