"""Stored maps against ground truth, at every background threshold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsss_rt.errors import WsssError
from wsss_rt.formats.npz import MAPS, read_maps
from wsss_rt.formats.png import read_mask
from wsss_rt.io.decode import printable
from wsss_rt.metrics import OFFICIAL_THRESHOLDS, Sweep, ThresholdSweep, nanmean
from wsss_rt.pairing import Pair, some

if TYPE_CHECKING:
    from numpy.typing import NDArray

SWEEP_THRESHOLDS = np.arange(100) / 100.0


@dataclass(frozen=True)
class SweepSummary:
    """Quality of stored maps over background thresholds.

    Attributes:
        curve: thresholds 0.00 .. 0.99, means over the chosen classes that occur.
        official: by the rule of MCTformer's script: 0.00 .. 0.59, absent classes count 0, and the first
            threshold that does not improve ends the search; None where that was not asked for.
    """

    curve: Sweep
    official: tuple[float, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        threshold, miou = self.curve.best()
        result: dict[str, Any] = {"best": {"threshold": threshold, "miou": number(miou)}}
        if self.official is not None:
            at, value = self.official
            result["official_greedy"] = {"threshold": at, "miou": number(value)}
        return result | {
            "thresholds": self.curve.thresholds.tolist(),
            "miou": [number(value) for value in self.curve.miou],
            "false_positive": [number(value) for value in self.curve.false_positive],
            "false_negative": [number(value) for value in self.curve.false_negative],
        }


def sweep_maps(
    folder: Path,
    pairs: Sequence[Pair],
    size: int,
    *,
    table: NDArray[np.uint8],
    chosen: Sequence[int],
    official: bool = False,
) -> SweepSummary:
    """Quality of stored maps at every background threshold.

    Args:
        folder: of npz files with the names of the masks.
        pairs: the images.
        size: number of mask values.
        table: (256,) mask value of the prediction to mask value of the truth.
        chosen: mask values that the means are over.
        official: also search as MCTformer's script does.

    Raises:
        WsssError: maps are missing or of another model; it names them.
    """
    sweep = ThresholdSweep(size, thresholds=SWEEP_THRESHOLDS)
    for maps, values, mask in stored_maps(folder, pairs, size, table=table):
        sweep.update(maps, [value - 1 for value in values], mask)
    curve = _over(sweep.result(), chosen)
    if not official:
        return SweepSummary(curve)
    zeroed, count = _over(sweep.result(absent="zero"), chosen), len(OFFICIAL_THRESHOLDS)
    greedy = replace(zeroed, thresholds=zeroed.thresholds[:count], miou=zeroed.miou[:count])
    return SweepSummary(curve, greedy.best_greedy())


def stored_maps(
    folder: Path, pairs: Sequence[Pair], size: int, *, table: NDArray[np.uint8]
) -> Iterator[tuple[NDArray[np.float32], list[int], NDArray[np.uint8]]]:
    """Per image its maps (K, H, W) at the size of the truth, the truth's value of each map, and the truth.

    Args and errors as :func:`sweep_maps`.
    """
    root = folder / MAPS if (folder / MAPS).is_dir() else folder
    found = {
        path.relative_to(root).as_posix().removesuffix(".npz"): path for path in sorted(root.rglob("*.npz"))
    }
    by_name = {key.rpartition("/")[2]: path for key, path in found.items()}
    paths: dict[str, Path] = {}
    for pair in pairs:
        name = pair.key.rpartition("/")[2]
        path = found.get(pair.key) or by_name.get(pair.prediction.stem) or by_name.get(name)
        if path is not None:
            paths[pair.key] = path
    absent = [pair.key for pair in pairs if pair.key not in paths]
    if absent:
        raise WsssError(
            f"{len(absent)} of {len(pairs)} images have no maps in {printable(root)}: {some(absent)}",
            fix="write them with `wsss-rt label --format npz`",
            code="missing_maps",
        )
    for pair in pairs:
        stored, mask = read_maps(paths[pair.key]), read_mask(pair.truth)
        values = [int(table[index + 1]) for index in stored.classes]
        if any(value == 0 or value >= size for value in values):
            raise WsssError(
                f"the maps {printable(paths[pair.key])} hold classes that the truth does not know"
            )
        yield stored.at_size(*mask.shape), values, mask


def number(value: Any) -> float | int | None:
    """A plain number for JSON; None for nan."""
    plain = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and math.isnan(plain) else plain


def _over(sweep: Sweep, chosen: Sequence[int]) -> Sweep:
    """The mean over the chosen classes alone; the FP and FN means stay over all."""
    return replace(sweep, miou=np.array([nanmean(row) for row in sweep.iou[:, list(chosen)]]))
