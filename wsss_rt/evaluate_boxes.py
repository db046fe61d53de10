"""Maps against true boxes: what ``wsss-rt eval --task localization`` computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsss_rt.box_files import TrueBoxes
from wsss_rt.box_results import BoxEvaluation, Variant, VariantResult
from wsss_rt.classes import ClassSet
from wsss_rt.errors import UsageError, WsssError, nearest
from wsss_rt.formats.npz import MAPS, StoredMaps, read_maps
from wsss_rt.io.names import printable
from wsss_rt.metrics.boxes import (
    BOX_THRESHOLDS,
    LocalizationAccuracy,
    MaxBoxAccV2,
    TopLocalization,
    box_overlaps,
    class_rank,
)
from wsss_rt.metrics.pixels import stretch
from wsss_rt.metrics.token_refinement import (
    CUB_THRESHOLD,
    TokenRefinementBoxAccuracy,
    scaled_boxes,
    top_localization,
)
from wsss_rt.pairing import match_names, refuse_missing, run_classes, some, without_ending

# pixels a side that maps are brought to, as MaxBoxAccV2 prescribes; boxes are scaled with them
SIDE = 224
_RELABEL = "label with these boxes as tags: `wsss-rt label IMAGES --tags BOXES.csv --format npz`"


@dataclass(frozen=True)
class BoxOptions:
    """How to compare.

    Attributes:
        classes: the model's classes, where no run.json names them.
        threshold: share of a map's maximum at which Top-1, Top-5 and GT-known cut; None takes the best for
            GT-known, and the variant's own for the variant.
        variant: also count as this program does.
        allow_missing: leave images without a prediction out.

    Raises:
        UsageError: a threshold out of range.
    """

    classes: ClassSet | None = None
    threshold: float | None = None
    variant: Variant | None = None
    allow_missing: bool = False

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise UsageError(
                f"the box threshold {self.threshold} is not in [0, 1)", why="it is a share of a map's maximum"
            )


def evaluate_boxes(
    prediction: Path, truth: Mapping[str, TrueBoxes], options: BoxOptions, *, whole: bool = True
) -> BoxEvaluation:
    """Compare the stored maps and scores of a run with true boxes.

    Args:
        prediction: output folder of ``label --format npz``, or its ``maps`` folder.
        truth: by image; see :func:`wsss_rt.box_files.read_boxes`.
        options: see :class:`BoxOptions`.
        whole: the truth is all there is, so that predictions beyond it are worth a mention.

    Raises:
        UsageError: no folder, unknown classes.
        WsssError: missing or odd predictions, odd boxes; each names the images.
    """
    if not prediction.is_dir():
        raise UsageError(f"no folder {printable(prediction)}", fix="check the spelling")
    below = (prediction / MAPS).is_dir()
    root = prediction / MAPS if below else prediction
    classes = run_classes(prediction if below else prediction.absolute().parent) or options.classes
    if classes is None:
        raise UsageError(
            f"nothing tells the classes of {printable(prediction)}",
            why="there is no run.json",
            fix="give --classes",
        )
    labels = _labels(truth, classes)
    found = {
        path.relative_to(root).as_posix().removesuffix(".npz"): path for path in sorted(root.rglob("*.npz"))
    }
    # a prediction is named as its image, with the ending where that is needed to tell two images apart
    keys = {image: image if image in found else without_ending(image) for image in truth}
    matches = match_names(keys.values(), found, what="maps")
    missing = tuple(image for image in truth if keys[image] not in matches)
    if not options.allow_missing:
        refuse_missing(
            missing,
            len(truth),
            prediction=root,
            fix="label them with --format npz, or give --allow-missing to leave them out",
        )
    images = tuple(image for image in truth if keys[image] in matches)
    if not images:
        raise WsssError("no image has both a prediction and a box", code="missing_predictions")
    tally = _Tally(classes, options)
    for image in images:
        tally.add(image, read_maps(found[matches[keys[image]]]), labels[image], truth[image].boxes)
    tally.refuse_odd()
    used = set(matches.values())
    extra = tuple(key for key in found if key not in used) if whole else ()
    few = len(classes) <= 5
    notes = (f"with {len(classes)} classes the true one is always among the strongest five",) if few else ()
    return BoxEvaluation(
        images,
        tally.top.best(),
        options.threshold is None,
        tally.boxes,
        missing,
        extra,
        tally.variant_result(),
        notes,
    )


@dataclass
class _Tally:
    """Counts over images, and the images that cannot be counted."""

    classes: ClassSet
    options: BoxOptions
    boxes: MaxBoxAccV2 = field(default_factory=MaxBoxAccV2)
    odd: list[str] = field(default_factory=list)
    without_map: list[str] = field(default_factory=list)
    beyond: list[str] = field(default_factory=list)
    flags: list[tuple[bool, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        given = self.options.threshold
        self.top = TopLocalization(BOX_THRESHOLDS if given is None else [given])
        self.variant_threshold = CUB_THRESHOLD if given is None else given
        self.variant_boxes = TokenRefinementBoxAccuracy(self.variant_threshold)

    def add(self, image: str, stored: StoredMaps, label: int, boxes: NDArray[np.float64]) -> None:
        height, width = stored.size
        if stored.scores.shape != (len(self.classes),):
            self.odd.append(f"{image} ({stored.scores.size} scores for {len(self.classes)} classes)")
        elif not np.isfinite(stored.scores).all() or not np.isfinite(stored.maps).all():
            self.odd.append(f"{image} (not finite)")
        elif label not in stored.classes:
            self.without_map.append(f"{image} ({self.classes.names[label]})")
        # a pixel too far is a convention of counting; more than that are boxes of another image
        elif boxes[:, :2].min() < -1 or (boxes[:, 2:] > (width + 1, height + 1)).any():
            self.beyond.append(f"{image} ({width}x{height})")
        else:
            plane = stored.classes.index(label)
            alone = replace(stored, maps=stored.maps[plane : plane + 1], classes=(label,))
            self._count(stretch(alone.at_size(SIDE, SIDE)[0]), stored, label, boxes)

    def _count(
        self, pixels: NDArray[np.float32], stored: StoredMaps, label: int, boxes: NDArray[np.float64]
    ) -> None:
        height, width = stored.size
        scaled = boxes * SIDE / (width, height, width, height)
        overlaps = box_overlaps(pixels, scaled, self.boxes.thresholds)
        self.boxes.add(overlaps)
        if self.options.threshold is not None:
            overlaps = box_overlaps(pixels, scaled, self.top.thresholds)
        self.top.add(overlaps, class_rank(stored.scores, label))
        if self.options.variant is Variant.TOKEN_REFINEMENT:
            official = scaled_boxes(boxes, stored.size, SIDE)
            flags = top_localization(stored.scores, pixels, label, official, threshold=self.variant_threshold)
            self.flags.append(
                (flags.class_1, flags.class_5, flags.located_1, flags.located_5, flags.gt_known)
            )
            self.variant_boxes.update(pixels, official)

    def variant_result(self) -> VariantResult | None:
        """What the variant gives, where it was asked for."""
        if self.options.variant is None:
            return None
        shares = np.array(self.flags, np.float64).mean(axis=0).tolist()
        accuracies = tuple(self.variant_boxes.accuracies().tolist())
        top = LocalizationAccuracy(self.variant_threshold, *shares)
        return VariantResult(self.options.variant, top, accuracies)

    def refuse_odd(self) -> None:
        """An error that names every image that could not be counted."""
        if self.odd:
            raise WsssError(
                f"{len(self.odd)} predictions are not of this model or broken: {some(self.odd)}",
                fix="label these images again with --format npz",
                code="odd_predictions",
            )
        if self.without_map:
            raise WsssError(
                f"{len(self.without_map)} predictions hold no map of the true class: "
                + some(self.without_map),
                why="`label` keeps the maps of an image's tags alone",
                fix=f"{_RELABEL}; the scores stay the model's own",
                code="missing_maps",
            )
        if self.beyond:
            raise WsssError(
                f"{len(self.beyond)} images have boxes that reach beyond them: {some(self.beyond)}",
                why="boxes are in pixels of the stored image: left, top, right, bottom",
                fix="scale the boxes to the images that were labelled",
                code="odd_boxes",
            )


def _labels(truth: Mapping[str, TrueBoxes], classes: ClassSet) -> dict[str, int]:
    """Index of the one class of every image."""
    several = [
        f"{image} ({', '.join(true.classes)})" for image, true in truth.items() if len(true.classes) > 1
    ]
    if several:
        raise WsssError(
            f"{len(several)} images have boxes of several classes: {some(several)}",
            why="Top-1, GT-known and MaxBoxAccV2 are defined for one class an image",
            fix="keep one class an image, or compare masks with --task segmentation",
            code="several_classes",
        )
    names: Sequence[str] = classes.names
    unknown = sorted({true.classes[0] for true in truth.values()} - set(names))
    if unknown:
        raise UsageError(
            f"the boxes name {len(unknown)} classes that the model does not know: {some(unknown)}",
            fix=f"for {unknown[0]!r}: {nearest(unknown[0], names)}",
            code="unknown_class",
        )
    return {image: names.index(true.classes[0]) for image, true in truth.items()}
