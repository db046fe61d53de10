"""Masks against ground truth: what ``wsss-rt eval`` computes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsss_rt.calibration import Calibration, CalibrationRequest, Calibrator
from wsss_rt.classes import IGNORE, MAX_CLASSES, ClassSet
from wsss_rt.errors import UsageError, WsssError, nearest
from wsss_rt.formats.png import read_mask
from wsss_rt.io.decode import printable
from wsss_rt.metrics import ConfusionMatrix, Joint, joint_histogram, nanmean
from wsss_rt.pairing import MaskFolder, Pair, Pairs, refuse_missing, some
from wsss_rt.sweep import SweepSummary, number, stored_maps, sweep_maps

if TYPE_CHECKING:
    from numpy.typing import NDArray


# the value of a predicted class that the truth does not name
_NO_CLASS = MAX_CLASSES + 1


@dataclass(frozen=True)
class ImageScore:
    """One image; ``miou`` is over the classes that it or its prediction holds, nan where that is none."""

    image: str
    miou: float
    pixel_accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """What the comparison gave.

    Attributes:
        names: of the mask values, background first.
        chosen: mask values that the means are over and that tables show.
        matrix: all pixels.
        images: one score per image, in the order of names.
        missing, extra: names without the other side.
        ignore_predicted: whether pixels predicted as ignore were left out instead of counted as wrong.
        notes: what a reader of the numbers should know.
        sweep, calibration: over stored maps, where asked for.
    """

    names: tuple[str, ...]
    chosen: tuple[int, ...]
    matrix: ConfusionMatrix
    images: tuple[ImageScore, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    ignore_predicted: bool = False
    notes: tuple[str, ...] = ()
    sweep: SweepSummary | None = None
    calibration: Calibration | None = None

    def iou(self) -> NDArray[np.float64]:
        """(num_classes,) IoU, nan for a class in neither truth nor prediction."""
        return self.matrix.iou(ignore_predicted=self.ignore_predicted)

    def miou(self, *, foreground: bool = False) -> float:
        """Mean IoU over the chosen classes that occur, with or without background."""
        values = [value for value in self.chosen if value or not foreground]
        return nanmean(self.iou()[values])

    def worst(self, count: int) -> list[ImageScore]:
        """The images with the lowest mIoU."""
        scored = [image for image in self.images if not math.isnan(image.miou)]
        return sorted(scored, key=lambda image: (image.miou, image.image))[:count]

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it: shares 0..1, null where undefined.

        The confusion is a table up to 254 classes; of more it lists [truth, prediction, pixels] of the pairs
        that occur.
        """
        matrix, ignoring = self.matrix, self.ignore_predicted
        columns = {
            "iou": self.iou(),
            "precision": matrix.precision(),
            "recall": matrix.recall(ignore_predicted=ignoring),
            "false_positive_rate": matrix.false_positive_rate(ignore_predicted=ignoring),
            "false_negative_rate": matrix.false_negative_rate(ignore_predicted=ignoring),
            "truth_pixels": matrix.truth(),
            "predicted_pixels": matrix.predicted(),
            "correct_pixels": matrix.correct(),
            "ignored_pixels": matrix.ignored,
        }
        classes = [
            {"value": value, "name": self.names[value]}
            | {key: number(column[value]) for key, column in columns.items()}
            for value in self.chosen
        ]
        result: dict[str, Any] = {
            "images": len(self.images),
            "miou": number(self.miou()),
            "miou_foreground": number(self.miou(foreground=True)),
            "miou_absent_as_zero": number(
                nanmean(matrix.iou(absent="zero", ignore_predicted=ignoring)[list(self.chosen)])
            ),
            "pixel_accuracy": number(matrix.pixel_accuracy(ignore_predicted=ignoring)),
            "coverage": number(matrix.coverage()),
            "predicted_ignore": "left out" if ignoring else "counted as wrong",
            "classes": classes,
            "confusion": {"names": list(self.names), **_confusion(matrix)},
            "missing": [printable(name) for name in self.missing],
            "extra": [printable(name) for name in self.extra],
            "notes": list(self.notes),
            "per_image": [
                {
                    "image": printable(image.image),
                    "miou": number(image.miou),
                    "pixel_accuracy": number(image.pixel_accuracy),
                }
                for image in self.images
            ],
        }
        if self.sweep is not None:
            result["sweep"] = self.sweep.as_dict()
        if self.calibration is not None:
            result["calibration"] = self.calibration.as_dict()
        return result


@dataclass(frozen=True)
class Options:
    """How to compare.

    Attributes:
        classes: names of the truth's values; None takes what lies beside the masks.
        only: names that the means are over; ``background`` is one.
        allow_missing: leave images without a prediction out.
        ignore_predicted: leave pixels predicted as ignore out; by default they count as wrong.
        sweep: folder of maps that ``label --format npz`` wrote.
        calibrate: which maps to calibrate, where asked for.
        official_sweep: also search the threshold as MCTformer's script does.
    """

    classes: ClassSet | None = None
    only: tuple[str, ...] = ()
    allow_missing: bool = False
    ignore_predicted: bool = False
    sweep: Path | None = None
    official_sweep: bool = False
    calibrate: CalibrationRequest | None = None


def evaluate(prediction: MaskFolder, truth: MaskFolder, pairs: Pairs, options: Options) -> Evaluation:
    """Compare all pairs.

    Args:
        prediction, truth: where the masks come from.
        pairs: as :func:`wsss_rt.pairing.pair_masks` matched them.
        options: see :class:`Options`.

    Raises:
        UsageError: class names that do not fit.
        WsssError: missing or odd-sized predictions, values outside the classes; each names the images.
    """
    if not options.allow_missing:
        total = len(pairs.matched) + len(pairs.missing)
        refuse_missing(pairs.missing, total, prediction=prediction.folder)
    if not pairs.matched:
        raise WsssError("no image has both a prediction and a truth", code="missing_predictions")
    names, table, notes = _reconcile(prediction.classes, truth.classes, options.classes)
    tally = _Tally(
        table,
        None if names is None else len(names) + 1,
        wide_prediction=_wide(prediction.classes or names),
        wide_truth=_wide(names),
    )
    for pair in pairs.matched:
        tally.add(pair)
    size = tally.finish()
    shown = names.names if names is not None else tuple(f"class {value}" for value in range(1, size))
    labels = ("background", *shown)
    chosen = _choose(options.only, labels)
    matrix = tally.matrix(size)
    if not options.only and names is None:
        # without names nobody knows which values exist: show those that occur
        occurs = matrix.truth() + matrix.predicted() > 0
        chosen = tuple(value for value in chosen if occurs[value])
        notes = [*notes, "class names unknown: give --classes"]
    images = tuple(tally.scores(size, chosen, ignore_predicted=options.ignore_predicted))
    result = Evaluation(
        labels, chosen, matrix, images, pairs.missing, pairs.extra, options.ignore_predicted, tuple(notes)
    )
    if options.calibrate is not None:
        wish, calibrator = options.calibrate, Calibrator()
        for maps, values, mask in stored_maps(wish.maps, pairs.matched, size, table=table, wide=_wide(names)):
            calibrator.add(maps, values, mask)
        result = replace(result, calibration=calibrator.result(target=wish.target, refined=wish.refined))
    if options.sweep is None:
        return result
    summary = sweep_maps(
        options.sweep,
        pairs.matched,
        size,
        table=table,
        wide=_wide(names),
        chosen=chosen,
        official=options.official_sweep,
    )
    return replace(result, sweep=summary)


@dataclass
class _Tally:
    """Counts over images, and the images that cannot be counted."""

    table: NDArray[np.int64]
    size: int | None
    wide_prediction: bool
    wide_truth: bool
    # a few hundred bytes an image
    kept: list[tuple[str, Joint]] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def add(self, pair: Pair) -> None:
        prediction = read_mask(pair.prediction, wide=self.wide_prediction)
        truth = read_mask(pair.truth, wide=self.wide_truth)
        if prediction.shape != truth.shape:
            sizes = " against ".join(f"{mask.shape[1]}x{mask.shape[0]}" for mask in (prediction, truth))
            self.odd.append(f"{pair.key} ({sizes})")
            return
        raw = joint_histogram(prediction, truth)
        joint = raw.renumbered(self.table)
        if self.size is not None:
            bad = sorted(set(joint.truth[joint.truth >= self.size].tolist()))
            # a prediction counts where there is truth, and is named as its own file has it
            strange = raw.prediction[(raw.truth >= 0) & (raw.prediction >= 0)]
            bad += sorted(set(strange[self.table[strange] >= self.size].tolist()))
            if bad:
                self.outside.append(f"{pair.key} ({', '.join(map(str, bad[:3]))})")
                return
        self.kept.append((pair.key, joint))

    def finish(self) -> int:
        """Number of mask values; or an error that names every image that could not be counted."""
        if self.odd:
            raise WsssError(
                f"{len(self.odd)} predictions differ in size from their truth: {some(self.odd)}",
                fix="compare masks in the raster of the image file; `wsss-rt label` writes such",
                code="odd_size",
            )
        if self.outside:
            raise WsssError(
                f"{len(self.outside)} images hold values that are no class: {some(self.outside)}",
                why=f"the classes take the values 0 to {(self.size or 1) - 1}, and the largest is ignore",
                fix="name the right classes with --classes",
                code="values_outside",
            )
        if self.size is not None:
            return self.size
        largest = 0
        for _, joint in self.kept:
            known = joint.truth >= 0
            largest = max(largest, joint.truth.max(initial=0), joint.prediction[known].max(initial=0))
        return int(largest) + 1

    def matrix(self, size: int) -> ConfusionMatrix:
        """All images together."""
        total = ConfusionMatrix(size)
        for _, joint in self.kept:
            total.add_joint(joint)
        return total

    def scores(self, size: int, chosen: Sequence[int], *, ignore_predicted: bool) -> Iterator[ImageScore]:
        """A score per image."""
        for key, joint in self.kept:
            matrix = ConfusionMatrix(size)
            matrix.add_joint(joint)
            iou = matrix.iou(ignore_predicted=ignore_predicted)[list(chosen)]
            yield ImageScore(key, nanmean(iou), matrix.pixel_accuracy(ignore_predicted=ignore_predicted))


def _reconcile(
    predicted: ClassSet | None, beside_truth: ClassSet | None, given: ClassSet | None
) -> tuple[ClassSet | None, NDArray[np.int64], list[str]]:
    """Names of the truth, and the value of the truth for every value of the prediction."""
    identity = np.arange(MAX_CLASSES + 1)
    names = given or beside_truth or predicted
    if names is None or predicted is None or predicted.names == names.names:
        return names, identity, []
    shared = [name for name in predicted.names if name in names.names]
    if not shared:
        raise UsageError(
            "the prediction and the truth share no class name",
            why=f"predicted: {', '.join(predicted.names[:5])}..; truth: {', '.join(names.names[:5])}..",
            fix="name the truth's classes with --classes",
            code="no_common_class",
        )
    table = np.full_like(identity, _NO_CLASS)
    table[0] = 0
    places = {name: value for value, name in enumerate(names.names, start=1)}
    for value, name in enumerate(predicted.names, start=1):
        table[value] = places.get(name, _NO_CLASS)
    notes = [f"matched by name: {len(shared)} classes of the prediction have other numbers in the truth"]
    return names, table, notes


def _wide(classes: ClassSet | None) -> bool:
    return classes is not None and classes.wide


def _confusion(matrix: ConfusionMatrix) -> dict[str, Any]:
    if matrix.num_classes <= IGNORE:
        return {"truth_by_prediction": matrix.counts.tolist()}
    cells = matrix.cells()
    return {"cells": np.stack([cells.truth, cells.prediction, cells.counts], axis=1).tolist()}


def _choose(only: Sequence[str], labels: Sequence[str]) -> tuple[int, ...]:
    if not only:
        return tuple(range(len(labels)))
    for name in only:
        if name not in labels:
            raise UsageError(f"unknown class {name!r} in --only", fix=nearest(name, labels))
    return tuple(value for value, label in enumerate(labels) if label in only)
