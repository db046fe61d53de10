"""The second look of ``--precision mixed``: images whose masks rounding may change run again in float32.

Rounding moves every score by a little. That changes a mask where scores lie close to a tie, and a CRF, which
weighs large regions against each other, can turn a little into half an image. Few images are like that, and
their scores show it before the CRF has run. One that float32 fails on, for memory or otherwise, keeps the
mask that bfloat16 had, and its record says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wsss_rt import localize, segment
from wsss_rt.errors import ImageError, ImageErrorCode
from wsss_rt.timing import Stopwatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.engines.base import EngineOutput
    from wsss_rt.localization import HostInferred, HostLocalization, Marked, Settled
    from wsss_rt.model_card import ModelCard

# scores are 0..1, and bfloat16 moves one by less than half of this on average
NEAR = 0.01
# part of an image's tokens that may be so near; docs/decisions.md says what was measured
TOLERATED = 0.047
# a segmenter has a score for every pixel, drawn up from tokens: each fourth pixel, both ways, tells as much,
# and all planes of an image need not be merged twice
STEP = 4
_LEAST_SIDE = 16
NOTE = "run again in float32: rounding may have decided its mask"
# how the notes of images end that float32 failed on
KEPT = "the bfloat16 mask was kept, though rounding may have decided it"


class Tally:
    """Counts the second looks that results tell of in their notes.

    Attributes:
        again: images whose masks float32 decided.
        kept: images that float32 failed on, whose masks bfloat16 decided.
    """

    def __init__(self) -> None:
        self.again = self.kept = 0

    def add(self, notes: Sequence[str]) -> None:
        """Count an image by its notes."""
        self.again += NOTE in notes
        self.kept += any(note.endswith(KEPT) for note in notes)

    def as_dict(self) -> dict[str, int]:
        """For run.json."""
        return {"second_looks": self.again, "second_looks_failed": self.kept}


def is_doubtful(
    outputs: Sequence[EngineOutput],
    given: tuple[int, ...] | None,
    *,
    card: ModelCard,
    background: float,
) -> bool:
    """Whether the scores of an image are so close to ties that a low precision may have decided its mask.

    Args:
        outputs: per pass what the engine gave, in the low precision.
        given: 0-based indices of the classes that the image's tags name; None where they are predicted, and
            then a probability near its threshold is a doubt as well.
        card: the model's.
        background: score of the background; not read for a segmenter.

    Returns:
        True also where an output holds NaN or infinity, which the low precision may be to blame for.
    """
    if not _is_finite(outputs):
        return True
    if card.kind == "segmenter":
        present = tuple(range(len(card.classes))) if given is None else given
    elif given is None:
        probabilities = localize.tag_probabilities([output.scores for output in outputs])
        thresholds = card.recommended.tag_thresholds or (0.5,) * len(card.classes)
        if (np.abs(probabilities - np.asarray(thresholds, np.float32)) < NEAR).any():
            return True
        present = localize.predict_tags(probabilities, thresholds)
    else:
        present = given
    maps = [output.maps for output in outputs]
    return bool(present) and near_ties(maps, present, card, background) >= TOLERATED


def _is_finite(outputs: Sequence[EngineOutput]) -> bool:
    return all(np.isfinite(part).all() for output in outputs for part in (output.scores, output.maps))


def near_ties(
    maps: Sequence[NDArray[np.float32]], present: Sequence[int], card: ModelCard, background: float
) -> float:
    """Part of an image's tokens, 0..1, whose best two scores lie within :data:`NEAR` of each other.

    Of a segmenter, part of its pixels, some of which stand for all where they are many.

    Args:
        maps: per pass (F, C, h, w) float32, as an engine gives them.
        present: 0-based indices of the classes that compete, at least one.
        card: the model's.
        background: score of the background, which competes too; not read for a segmenter.
    """
    height, width = max((entry.shape[2:] for entry in maps), key=lambda shape: int(np.prod(shape)))
    if card.kind == "segmenter":
        planes = segment.planes_of(present, has_background=card.has_background)
        views, size = _samples(maps, (height, width))
        merged = segment.merge_passes(views, size=size, planes=planes)
    else:
        merged = np.empty((len(present) + 1, height, width), np.float32)
        merged[0] = background
        merged[1:] = localize.merge_passes(maps, present, size=(height, width), rule=card.maps)
    if len(merged) < 2:
        return 0.0
    best = np.partition(merged, len(merged) - 2, axis=0)
    return float(np.mean(best[-1] - best[-2] < NEAR))


def _samples(
    maps: Sequence[NDArray[np.float32]], size: tuple[int, int]
) -> tuple[list[NDArray[np.float32]], tuple[int, int]]:
    """A segmenter's views (1, K, h, w), none mirrored, at some pixels of the largest; and their size."""
    views = [(row[:, :, ::-1] if index else row)[None] for entry in maps for index, row in enumerate(entry)]
    step = max(1, min(STEP, min(size) // _LEAST_SIDE))
    # views of other sizes are resized to this one when they are merged
    sampled = [
        view[:, :, step // 2 :: step, step // 2 :: step] if view.shape[2:] == size else view for view in views
    ]
    height, width = (len(range(step // 2, side, step)) for side in size)
    return sampled, (height, width)


class SecondLook:
    """A localization in numpy whose engine is :class:`wsss_rt.engines.mixed.MixedEngine`.

    Args:
        fast: on the mixed engine.
        exact: on its exact one, with the same options.
        card: the model's.
        background: score of the background.
    """

    name = "numpy"

    def __init__(
        self, fast: HostLocalization, exact: HostLocalization, *, card: ModelCard, background: float
    ) -> None:
        self._fast, self._exact, self._card, self._background = fast, exact, card, background
        self.batch = fast.batch
        self.kernels: dict[str, dict[str, str]] = {}

    def warm_up(self, announce: Callable[[str], None], stop: Callable[[], bool]) -> None:
        """Nothing to find out."""

    def prepare(self, image: NDArray[np.uint8]) -> list[localize.Pass]:
        """See :meth:`wsss_rt.localization.Localization.prepare`."""
        return self._fast.prepare(image)

    def infer(
        self, group: Sequence[Sequence[localize.Pass]], given: Sequence[tuple[int, ...] | None]
    ) -> list[Any]:
        """See :meth:`wsss_rt.localization.Localization.infer`; doubtful images run twice.

        Raises:
            ImageError: the fast engine failed, or the exact one where the fast one gave no numbers.
            WsssError: code ``device_lost``, of either: nothing can run on that device any more.
        """
        found = self._fast.infer(group, given)
        for index, (inferred, tags) in enumerate(zip(found, given, strict=True)):
            if is_doubtful(inferred.outputs, tags, card=self._card, background=self._background):
                found[index] = self._again(group[index], tags, inferred)
        return found

    def _again(
        self, passes: Sequence[localize.Pass], tags: tuple[int, ...] | None, first: HostInferred
    ) -> HostInferred:
        """What float32 says of a doubtful image; what bfloat16 said, where float32 fails on it."""
        clock = Stopwatch()
        try:
            with clock.stage("infer"):
                (again,) = self._exact.infer([passes], [tags])
        except (ImageError, MemoryError) as error:
            if not _is_finite(first.outputs):
                # there is no mask to keep
                raise
            memory = isinstance(error, MemoryError) or error.code == ImageErrorCode.OUT_OF_MEMORY
            why = "float32 did not fit in memory" if memory else f"float32 failed ({error})"
            return replace(
                first,
                milliseconds=first.milliseconds + clock.milliseconds["infer"],
                notes=(*first.notes, f"{why}; {KEPT}"),
            )
        return again.after(first, NOTE)

    def settle(self, inferred: Any) -> Settled:
        """See :meth:`wsss_rt.localization.Localization.settle`."""
        return self._fast.settle(inferred)

    def mark(
        self, inferred: Any, image: NDArray[np.uint8], present: tuple[int, ...], clock: Stopwatch
    ) -> Marked:
        """See :meth:`wsss_rt.localization.Localization.mark`."""
        return self._fast.mark(inferred, image, present, clock)
