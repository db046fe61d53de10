"""An engine that runs another one on windows of large inputs; outside of the graph, which knows no loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsss_rt.engines.base import Engine, EngineOutput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class WindowedEngine:
    """Slides the card's window over every input, and averages what windows say of the same pixel.

    Only for models whose maps have the input's own size. A whole input's scores are the highest of its
    windows': what one of them shows, the image shows.

    Args:
        engine: runs each window; :meth:`close` closes it.
        window: side of the square windows, pixels.
        stride: between them, pixels; None is ``window``.

    Raises:
        ValueError: a stride that is not in 1..window.
    """

    def __init__(self, engine: Engine, *, window: int, stride: int | None = None) -> None:
        self._engine, self._window, self._stride = engine, window, stride or window
        if not 1 <= self._stride <= window:
            raise ValueError(f"stride {stride} is not in 1..{window}")
        self.backend, self.device, self.precision = engine.backend, engine.device, engine.precision
        self.card = engine.card
        self.choice: dict[str, Any] = engine.choice
        self.lanes: int = getattr(engine, "lanes", 1)
        exact: Engine | None = getattr(engine, "exact", None)
        self.exact = None if exact is None else WindowedEngine(exact, window=window, stride=stride)

    def run(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run a batch; see :meth:`wsss_rt.engines.base.Engine.run`."""
        found = self.infer(images)
        return found.scores, found.maps

    def infer(self, images: NDArray[np.float32]) -> EngineOutput:
        """Run a batch; see :meth:`wsss_rt.engines.base.Engine.infer`."""
        import numpy as np

        from wsss_rt.segment import windows

        height, width = images.shape[2:]
        parts = list(windows((height, width), self._window, self._stride))
        if len(parts) == 1:
            return self._engine.infer(images)
        counts = np.zeros((height, width), np.float32)
        scores: NDArray[np.float32] | None = None
        maps: NDArray[np.float32] | None = None
        for rows, columns in parts:
            found = self._engine.infer(np.ascontiguousarray(images[:, :, rows, columns]))
            if maps is None:
                maps = np.zeros((*found.maps.shape[:2], height, width), np.float32)
            maps[:, :, rows, columns] += found.maps
            counts[rows, columns] += 1
            scores = found.scores if scores is None else np.maximum(scores, found.scores)
        assert maps is not None and scores is not None
        maps /= counts
        return EngineOutput(scores, maps)

    def close(self) -> None:
        """Free the engine behind it."""
        self._engine.close()


def windowed(engine: Engine) -> Engine:
    """The engine as its card wants it run: on windows, or as it is."""
    spec = engine.card.input
    if spec.window is None or isinstance(engine, WindowedEngine):
        return engine
    return WindowedEngine(engine, window=spec.window, stride=spec.stride)
