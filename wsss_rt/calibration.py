"""How far stored maps can be trusted: coverage against precision, and the thresholds that reach a target.

The best class score of a pixel is its confidence, before a refiner as after it (there it is a marginal). From
a threshold on up, its class is right in some share of the pixels: precision; coverage is the share of all
pixels that lie there. Below another threshold the same is said of background.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsss_rt import __version__
from wsss_rt.classes import BACKGROUND, ignore_value
from wsss_rt.io.decode import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

# steps of the thresholds; maps are stored as float16, which has about as many between 0.5 and 1
LEVELS = 1000
DEFAULT_TARGET = 0.9
# in a refined map background is what the classes leave, so that a class wins from about here
EVEN = 0.5


@dataclass(frozen=True)
class CalibrationRequest:
    """What is to be calibrated.

    Attributes:
        maps: folder of maps that ``label --format npz`` wrote.
        target: precision to reach, in (0, 1).
        refined: whether the maps are marginals of a refiner.
    """

    maps: Path
    target: float
    refined: bool


@dataclass(frozen=True)
class Calibration:
    """Coverage and precision over thresholds, all shares of the pixels with truth.

    Attributes:
        thresholds: (LEVELS + 1,) 0..1.
        class_precision, class_coverage: of the pixels whose best class score reaches each threshold; nan
            where there are none.
        background_precision, background_coverage: of those below it.
        target: the precision that was asked for.
        refined: whether the maps are marginals of a refiner.
        images: how many were looked at.
    """

    thresholds: NDArray[np.float64]
    class_precision: NDArray[np.float64]
    class_coverage: NDArray[np.float64]
    background_precision: NDArray[np.float64]
    background_coverage: NDArray[np.float64]
    target: float
    refined: bool
    images: int

    def band(self) -> tuple[float, float] | None:
        """(low, high): below low background, from high on a class reach the target; None if either cannot.

        Of all such thresholds the ones that cover most. Where they cross, both are their mean: nothing needs
        to be ignored.
        """
        high = np.flatnonzero(self.class_precision >= self.target)
        low = np.flatnonzero(self.background_precision >= self.target)
        if not high.size or not low.size:
            return None
        last, first = float(self.thresholds[low[-1]]), float(self.thresholds[high[0]])
        if self.refined:
            last, first = min(last, EVEN), max(first, EVEN)
        if last >= first:
            last = first = (last + first) / 2
        return round(last, 4), round(first, 4)

    def kept(self) -> float:
        """Share of the pixels outside the band; nan without one."""
        band = self.band()
        if band is None:
            return float("nan")
        low, high = (round(value * LEVELS) for value in band)
        return float(self.background_coverage[low] + self.class_coverage[high])

    def settings(self) -> dict[str, Any]:
        """Settings of ``label`` that use the band; none where there is no band."""
        band = self.band()
        if band is None:
            return {}
        found: dict[str, Any] = {} if self.refined else {"background": band[0]}
        if band[0] < band[1]:
            found["ignore-band"] = list(band)
        return found

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it, every twentieth threshold."""
        at = slice(None, None, LEVELS // 50)
        curves = {
            name: [None if np.isnan(value) else round(float(value), 6) for value in getattr(self, name)[at]]
            for name in ("class_precision", "class_coverage", "background_precision", "background_coverage")
        }
        kept = self.kept()
        return {
            "target": self.target,
            "refined": self.refined,
            "images": self.images,
            "settings": self.settings(),
            "coverage": None if np.isnan(kept) else kept,
            "thresholds": self.thresholds[at].tolist(),
            **curves,
        }


class Calibrator:
    """Collects pixels of many images in constant memory."""

    def __init__(self) -> None:
        # by level of the best class score: all pixels, those whose class is right, those of background
        self._all, self._right, self._background = np.zeros((3, LEVELS + 1), np.int64)
        self._images = 0

    def add(self, maps: NDArray[np.float32], values: Iterable[int], truth: NDArray[np.integer[Any]]) -> None:
        """Count an image.

        Args:
            maps: (K, H, W) scores in 0..1; K may be 0.
            values: the mask value of each map.
            truth: (H, W) mask, whose ignored pixels are left out.
        """
        best = np.zeros(truth.shape, np.float32)
        label = np.zeros_like(truth)
        for plane, value in zip(maps, values, strict=True):
            np.copyto(label, truth.dtype.type(value), where=plane > best)
            np.maximum(best, plane, out=best)
        known = truth != ignore_value(truth)
        levels = np.clip(best * LEVELS, 0, LEVELS).astype(np.int32)
        for counts, chosen in (
            (self._all, known),
            (self._right, known & (label == truth) & (label != BACKGROUND)),
            (self._background, known & (truth == BACKGROUND)),
        ):
            counts += np.bincount(levels[chosen], minlength=LEVELS + 1)
        self._images += 1

    def result(self, *, target: float, refined: bool) -> Calibration:
        """The curves over everything that was added."""
        total = max(int(self._all.sum()), 1)
        above, right = (counts[::-1].cumsum()[::-1] for counts in (self._all, self._right))
        below, background = (
            np.concatenate([[0], counts.cumsum()[:-1]]) for counts in (self._all, self._background)
        )
        return Calibration(
            np.arange(LEVELS + 1) / LEVELS,
            _shares(right, above),
            above / total,
            _shares(background, below),
            below / total,
            target,
            refined,
            self._images,
        )


def as_toml(calibration: Calibration, origin: Mapping[str, Any]) -> str:
    """The settings for ``label --config``, with a comment that says where they come from.

    Args:
        calibration: with a band.
        origin: ``maps`` and ``truth`` (folders), and ``run`` (hash of the run's configuration, or None).
    """
    lines = [
        f"# by wsss-rt {__version__} eval --calibrate",
        f"# precision {calibration.target:g} on {calibration.images} images",
        f"# maps: {printable(Path(origin['maps']))}",
        f"# truth: {printable(Path(origin['truth']))}",
        f"# configuration of the run: {origin['run'] or 'unknown'}",
        f"# {100 * calibration.kept():.1f} % of the pixels keep a label",
        "# another model or refiner needs its own",
        "[label]",
    ]
    lines += [f"{name} = {value}" for name, value in calibration.settings().items()]
    return "\n".join(lines) + "\n"


def _shares(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
