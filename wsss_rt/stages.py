"""What happens to one image: read, decode, prepare, infer, localize, refine, decide, encode.

What is wrong with an image stays in its work as a failure; anything else that goes wrong is raised.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from wsss_rt import localize
from wsss_rt.classes import BACKGROUND, ignore_value
from wsss_rt.errors import ImageError, ImageErrorCode
from wsss_rt.formats.png import encode_mask
from wsss_rt.io.decode import DecodedImage, decode_image, read_bytes, to_stored_raster
from wsss_rt.localization import open_localization
from wsss_rt.results import Failure, Result
from wsss_rt.timing import Stopwatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.engines.base import Engine
    from wsss_rt.options import LabelOptions
    from wsss_rt.refine import Refiner

# a given tag is doubted when its class's probability is below this part of the threshold for predicting it
EVIDENCE = 0.25


@dataclass
class Work:
    """An image on its way through the stages.

    Attributes:
        result: what is known so far.
        given: the image's tags, in class order; None where they are predicted.
        untagged: where the tags should have come from, for an image that has none there.
    """

    result: Result
    given: tuple[str, ...] | None = None
    untagged: str = ""
    clock: Stopwatch = field(default_factory=Stopwatch)
    decoded: DecodedImage | None = None
    passes: list[Any] = field(default_factory=list)
    inferred: Any = None

    def fail(self, error: ImageError) -> None:
        """Keep why there will be no mask, and let go of everything large."""
        self.result.error = Failure.of(error)
        self.decoded, self.passes, self.inferred = None, [], None


class ImageStages:
    """The stages, bound to a model and its options.

    Args:
        engine: runs the model; :meth:`infer` is its only caller.
        options: resolved against the card.
        refiner: None leaves the scores as they are.

    Attributes:
        localization: what computes, in numpy or on the engine's device.
    """

    def __init__(self, engine: Engine, options: LabelOptions, refiner: Refiner | None) -> None:
        self._options = options
        self.localization = open_localization(engine, options, refiner)
        card = engine.card
        self._spec, self._names, self._segments = card.input, card.classes, card.kind == "segmenter"
        self._thresholds = card.recommended.tag_thresholds or (0.5,) * len(card.classes)

    def admit_file(self, work: Work) -> Work:
        """Read, decode and prepare the file ``work.result.path``; thread-safe."""
        return self._guarded(work, self._admit_file)

    def admit_pixels(self, work: Work, image: NDArray[np.uint8]) -> Work:
        """Prepare (H, W, 3) uint8 RGB pixels, upright."""
        size = (image.shape[1], image.shape[0])
        work.decoded = DecodedImage(image, 1, size, "array", "RGB", 8, ())
        return self._guarded(work, self._prepare)

    def infer(self, batch: Sequence[Work]) -> None:
        """Run the model on a batch; images whose inputs have the same shapes share a call."""
        groups: dict[tuple[tuple[int, ...], ...], list[Work]] = {}
        for work in batch:
            if work.passes:
                groups.setdefault(tuple(entry.shape for entry in work.passes), []).append(work)
        for group in groups.values():
            self._infer_group(group)

    def finish(self, work: Work) -> Result:
        """Turn what the model says into the mask; thread-safe."""
        if work.inferred is not None:
            self._guarded(work, self._localize)
        work.result.timings = {name: round(value, 3) for name, value in work.clock.milliseconds.items()}
        return work.result

    def _infer_group(self, group: Sequence[Work]) -> None:
        try:
            found = self.localization.infer(
                [work.passes for work in group], [self._given(work) for work in group]
            )
        except (ImageError, MemoryError) as error:
            if len(group) == 1:
                group[0].fail(error if isinstance(error, ImageError) else _too_large())
                return
            # one of them is to blame, or the batch is too large: in the end each answers for itself
            half = len(group) // 2
            self._infer_group(group[:half])
            self._infer_group(group[half:])
            return
        for work, inferred in zip(group, found, strict=True):
            work.inferred, work.passes = inferred, []

    def _guarded(self, work: Work, step: Callable[[Work], None]) -> Work:
        try:
            step(work)
        except ImageError as error:
            work.fail(error)
        except MemoryError:
            work.fail(_too_large())
        return work

    def _admit_file(self, work: Work) -> None:
        result = work.result
        if work.given is not None:
            # set before the image is read, so that the record of an unreadable image has them too
            result.tags, result.tag_source = work.given, "given"
        with work.clock.stage("read"):
            data = read_bytes(result.path)
            result.input_sha256 = hashlib.sha256(data).hexdigest()
            result.input_bytes, result.input_mtime_ns = len(data), _mtime_ns(result.path)
        if work.untagged:
            raise ImageError(
                ImageErrorCode.NO_TAGS,
                f"{work.untagged} has no tags for this image",
                fix="add the image there, or leave --tags out to predict the tags",
            )
        with work.clock.stage("decode"):
            work.decoded = decode_image(data, max_pixels=self._options.max_pixels)
        self._prepare(work)

    def _prepare(self, work: Work) -> None:
        assert work.decoded is not None
        decoded, scales = work.decoded, self._options.scales or (1.0,)
        height, width = decoded.upright.shape[:2]
        with work.clock.stage("prepare"):
            _, notes = localize.pass_sizes((width, height), self._spec, scales=scales)
            work.passes = self.localization.prepare(decoded.upright)
        work.result.size, work.result.orientation = decoded.stored_size, decoded.orientation
        work.result.notes = (*decoded.notes, *notes)

    def _localize(self, work: Work) -> None:
        assert work.decoded is not None
        result, decoded, options = work.result, work.decoded, self._options
        settled = self.localization.settle(work.inferred)
        work.clock.add("infer", settled.milliseconds)
        result.notes = (*result.notes, *settled.notes)
        probabilities = localize.tag_probabilities(settled.scores)
        result.scores = {
            name: round(float(value), 6) for name, value in zip(self._names, probabilities, strict=True)
        }
        # a segmenter says itself what it sees, and where
        predicts = self._segments and work.given is None
        present = tuple(range(len(self._names))) if predicts else self._present(work, probabilities)
        marked = self.localization.mark(work.inferred, decoded.upright, present, work.clock)
        decision, maps = marked.decision, marked.maps
        with work.clock.stage("decide"):
            mask = to_stored_raster(decision.mask, decoded.orientation)
        with work.clock.stage("encode"):
            result.png = encode_mask(mask)
            result.mask_sha256 = hashlib.sha256(result.png).hexdigest()
        result.mask = mask
        result.confidence = round(decision.confidence, 6)
        scored = zip(present, decision.class_scores, strict=True)
        result.class_scores = {self._names[index]: round(score, 6) for index, score in scored}
        if predicts:
            present = self._found(result, mask)
            maps = None if maps is None else maps[list(present)]
        if present and not mask.any():
            result.flags = (*result.flags, "all_background")
        if options.keep_image:
            result.image = decoded.upright
        if options.keep_maps:
            assert maps is not None
            # the planes as trailing channels turn with the pixels
            turned = to_stored_raster(np.moveaxis(maps, 0, 2), decoded.orientation)
            result.maps = np.ascontiguousarray(np.moveaxis(turned, 2, 0))
        work.decoded = work.inferred = None

    def _given(self, work: Work) -> tuple[int, ...] | None:
        """0-based indices of an image's given tags, ascending; None where they are predicted."""
        return None if work.given is None else tuple(self._names.index(tag) for tag in work.given)

    def _found(self, result: Result, mask: NDArray[np.uint8] | NDArray[np.uint16]) -> tuple[int, ...]:
        """0-based indices of the classes in the mask, which are its tags; sets tags, source and flags."""
        values = np.unique(mask)
        found = tuple(int(value) - 1 for value in values if value not in (BACKGROUND, ignore_value(mask)))
        result.tags, result.tag_source = tuple(self._names[index] for index in found), "predicted"
        result.class_scores = {name: result.class_scores[name] for name in result.tags}
        result.flags = () if found else ("no_class_found",)
        return found

    def _present(self, work: Work, probabilities: NDArray[np.float32]) -> tuple[int, ...]:
        """0-based indices of the classes to look for, ascending; sets the tags, their source and flags."""
        result = work.result
        if work.given is None:
            present = localize.predict_tags(probabilities, self._thresholds)
            result.tags = tuple(self._names[index] for index in present)
            result.tag_source = "predicted"
            result.flags = () if present else ("no_class_found",)
            return present
        present = self._given(work) or ()
        result.tags, result.tag_source = work.given, "given"
        if not present:
            result.flags = ("no_tags_given",)
        elif any(probabilities[index] < EVIDENCE * self._thresholds[index] for index in present):
            result.flags = ("tag_without_evidence",)
        return present


def _too_large() -> ImageError:
    return ImageError(ImageErrorCode.OUT_OF_MEMORY, "there is not enough memory for this image")


def _mtime_ns(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        # gone since it was read: without a time, a later run reads it again
        return None
