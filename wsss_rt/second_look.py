"""The second look of ``--precision mixed``: images whose masks rounding may change run again in float32.

Rounding moves every score by a little. That changes a mask where scores lie close to a tie, and a CRF, which
weighs large regions against each other, can turn a little into half an image. Few images are like that, and
their scores show it before the CRF has run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wsss_rt import localize, segment

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.engines.base import EngineOutput
    from wsss_rt.localization import HostLocalization, Marked, Settled
    from wsss_rt.model_card import ModelCard
    from wsss_rt.timing import Stopwatch

# scores are 0..1, and bfloat16 moves one of them by up to about this much
NEAR = 0.03
# part of an image's tokens that may be so near; docs/decisions.md says what was measured
TOLERATED = 0.135
NOTE = "run again in float32: rounding may have decided its mask"


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
    if not all(np.isfinite(part).all() for output in outputs for part in (output.scores, output.maps)):
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


def near_ties(
    maps: Sequence[NDArray[np.float32]], present: Sequence[int], card: ModelCard, background: float
) -> float:
    """Part of an image's tokens, 0..1, whose best two scores lie within :data:`NEAR` of each other.

    Args:
        maps: per pass (F, C, h, w) float32, as an engine gives them.
        present: 0-based indices of the classes that compete, at least one.
        card: the model's.
        background: score of the background, which competes too; not read for a segmenter.
    """
    height, width = max((entry.shape[2:] for entry in maps), key=lambda shape: int(np.prod(shape)))
    if card.kind == "segmenter":
        planes = segment.planes_of(present, has_background=card.has_background)
        merged = segment.merge_passes(list(maps), size=(height, width), planes=planes)
    else:
        merged = np.empty((len(present) + 1, height, width), np.float32)
        merged[0] = background
        merged[1:] = localize.merge_passes(maps, present, size=(height, width), rule=card.maps)
    if len(merged) < 2:
        return 0.0
    best = np.partition(merged, len(merged) - 2, axis=0)
    return float(np.mean(best[-1] - best[-2] < NEAR))


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

    def prepare(self, image: NDArray[np.uint8]) -> list[localize.Pass]:
        """See :meth:`wsss_rt.localization.Localization.prepare`."""
        return self._fast.prepare(image)

    def infer(
        self, group: Sequence[Sequence[localize.Pass]], given: Sequence[tuple[int, ...] | None]
    ) -> list[Any]:
        """See :meth:`wsss_rt.localization.Localization.infer`; doubtful images run twice."""
        found = self._fast.infer(group, given)
        for index, (inferred, tags) in enumerate(zip(found, given, strict=True)):
            if is_doubtful(inferred.outputs, tags, card=self._card, background=self._background):
                (again,) = self._exact.infer([group[index]], [tags])
                found[index] = again.after(inferred, NOTE)
        return found

    def settle(self, inferred: Any) -> Settled:
        """See :meth:`wsss_rt.localization.Localization.settle`."""
        return self._fast.settle(inferred)

    def mark(
        self, inferred: Any, image: NDArray[np.uint8], present: tuple[int, ...], clock: Stopwatch
    ) -> Marked:
        """See :meth:`wsss_rt.localization.Localization.mark`."""
        return self._fast.mark(inferred, image, present, clock)
