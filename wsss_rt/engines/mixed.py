"""Two engines of one model: a fast one for every image, and an exact one for those that need it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsss_rt.engines.base import Engine, EngineOutput


class MixedEngine:
    """Runs ``fast``, and has ``exact`` at hand; who asks again, and when, is :mod:`wsss_rt.second_look`.

    Args:
        fast: in a low precision.
        exact: the same model on the same device in float32.

    Attributes:
        exact: as above; :meth:`close` closes both.
        lanes: images that the fast one runs at once.
    """

    precision = "mixed"

    def __init__(self, fast: Engine, exact: Engine) -> None:
        self._fast, self.exact = fast, exact
        self.backend, self.device, self.card = fast.backend, fast.device, fast.card
        # how the fast one computes counts: the parity gate judges it
        self.choice: dict[str, Any] = {**fast.choice, "mixed": [fast.precision, exact.precision]}
        self.lanes: int = getattr(fast, "lanes", 1)

    def run(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run a batch in the low precision; see :meth:`wsss_rt.engines.base.Engine.run`."""
        return self._fast.run(images)

    def infer(self, images: NDArray[np.float32]) -> EngineOutput:
        """Run a batch in the low precision; see :meth:`wsss_rt.engines.base.Engine.infer`."""
        return self._fast.infer(images)

    def close(self) -> None:
        """Free both."""
        self._fast.close()
        self.exact.close()
