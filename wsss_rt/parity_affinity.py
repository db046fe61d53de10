"""The gate before an affinity model: its planes, in every engine, against float32 PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from wsss_rt.localize import prepare_passes
from wsss_rt.parity import ParityReport, ParityRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.model_card import ModelCard


class Runs(Protocol):
    """The part of an engine that this gate uses."""

    def run(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """See :class:`wsss_rt.engines.base.Engine`."""
        ...


def compare_affinity(
    reference: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    engines: Mapping[str, Runs],
    images: Sequence[NDArray[np.uint8]],
    *,
    card: ModelCard,
    limit: float,
    source: str,
    missing: Mapping[str, str] | None = None,
) -> ParityReport:
    """Run the images through the model and each engine.

    Args:
        reference: the float32 model: (1, 3, H, W) to (1, K, h, w) in 0..1.
        engines: by the name that the report shows.
        images: (H, W, 3) uint8 RGB.
        card: input policy.
        limit: for the largest difference of an affinity, which is 0..1 by itself.
        source: what images these are, for the report.
        missing: engines that cannot take part, with the reason.
    """
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in engines}
    for image in images:
        tensor = prepare_passes(image, card.input, scales=(1.0,), flip=False)[0].images
        expected = reference(tensor)
        for name, engine in engines.items():
            (got,) = engine.run(tensor)
            if got.shape != expected.shape:
                found[name].append((float("inf"), float("inf"), 1))
                continue
            error = np.abs(got.astype(np.float64) - expected)
            found[name].append((float(error.max()), float(error.sum()), error.size))
    rows = tuple(
        ParityRow(
            name,
            "affinity",
            # numpy's maximum keeps NaN, which Python's would drop
            float(np.max([worst for worst, _, _ in entries])),
            sum(total for _, total, _ in entries) / sum(count for _, _, count in entries),
            limit,
        )
        for name, entries in found.items()
    )
    return ParityReport(rows, len(images), source, dict(missing or {}))
