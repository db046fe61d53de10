"""From pixels to masks on an engine's device: ``wsss_rt.kernels.localize`` in the project's terms.

Torch is imported when an engine is given whose outputs can stay on its device: that engine has imported it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from wsss_rt import localize, segment
from wsss_rt.classes import is_wide
from wsss_rt.device_refine import device_refiner, refiner_operators
from wsss_rt.engines.runtime import engine_error
from wsss_rt.localization import Marked, Settled, auto_batch
from wsss_rt.timing import Stopwatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.engines.base import TensorEngine
    from wsss_rt.kernels.localize import Inferred
    from wsss_rt.options import LabelOptions
    from wsss_rt.refine import Refiner


class DeviceLocalization:
    """On the engine's device; see :class:`wsss_rt.localization.Localization`.

    Only bytes go there (the pixels, and for a refiner those of the whole image), and only a mask and a few
    numbers come back, and the maps where they are to be kept. An image is resized on the host, because
    Pillow's filter is not torch's.

    Args:
        engine: runs the model.
        options: resolved against the card.
        refiner: None leaves the scores as they are.
    """

    name = "torch"

    def __init__(self, engine: TensorEngine, options: LabelOptions, refiner: Refiner | None) -> None:
        from wsss_rt.kernels.localize import DeviceMaps

        self._options, self._card, self._backend = options, engine.card, engine.backend
        table = localize.normalisation_table(engine.card.input.mean, engine.card.input.std)
        self._maps = DeviceMaps(engine.run_tensors, engine.device, table)
        self._refine = None if refiner is None else device_refiner(refiner, self._maps)
        # those that _mark goes through
        to_mask: tuple[str, ...] = ("map_planes", "planes_to_mask")
        if engine.card.kind == "segmenter":
            to_mask = ("planes_to_mask",)
        elif refiner is None and not options.keep_maps:
            to_mask = ("map_to_mask",)
        self._device, self._operators = engine.device, (*to_mask, *refiner_operators(refiner))
        self.batch = auto_batch(engine, flip=bool(options.flip))

    @property
    def kernels(self) -> dict[str, dict[str, str]]:
        """See :class:`wsss_rt.localization.Localization`."""
        from wsss_rt.kernels import standing

        return {name: found.as_dict() for name, found in standing(self._device, self._operators).items()}

    def warm_up(self, announce: Callable[[str], None], stop: Callable[[], bool]) -> None:
        """See :meth:`wsss_rt.localization.Localization.warm_up`: kernels are proven where they never were."""
        from wsss_rt.kernels import ensure_proof

        ensure_proof(self._device, self._operators, tell=announce, stop=stop)

    def prepare(self, image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """See :meth:`wsss_rt.localization.Localization.prepare`."""
        return localize.resized_pixels(image, self._card.input, scales=self._options.scales or (1.0,))

    def infer(
        self, group: Sequence[Sequence[NDArray[np.uint8]]], given: Sequence[tuple[int, ...] | None]
    ) -> list[Inferred]:
        """See :meth:`wsss_rt.localization.Localization.infer`; does not wait for this batch."""
        with self._errors(group[0][0].shape):
            return self._maps.infer(group, flip=bool(self._options.flip))

    def settle(self, inferred: Inferred) -> Settled:
        """See :meth:`wsss_rt.localization.Localization.settle`."""
        with self._errors(inferred.maps[0].shape):
            scores, finite, milliseconds = self._maps.settle(inferred)
        if not all(np.isfinite(part).all() for part in scores):
            raise localize.nonfinite("scores")
        if not finite:
            raise localize.nonfinite("maps")
        return Settled(scores, milliseconds)

    def mark(
        self, inferred: Inferred, image: NDArray[np.uint8], present: tuple[int, ...], clock: Stopwatch
    ) -> Marked:
        """See :meth:`wsss_rt.localization.Localization.mark`."""
        with self._errors(image.shape[:2]):
            return self._mark(inferred, image, present, clock)

    def _mark(
        self, inferred: Inferred, image: NDArray[np.uint8], present: tuple[int, ...], clock: Stopwatch
    ) -> Marked:
        card, options, size = self._card, self._options, (image.shape[0], image.shape[1])
        segments, wide = card.kind == "segmenter", is_wide(len(card.classes))
        score = -np.inf if segments else float(options.background or 0.0)
        rule: dict[str, Any] = {"ignore_band": options.ignore_band, "wide": wide}
        maps_rule = {"upsample": card.maps.upsample, "normalise": card.maps.normalise}
        if not segments and self._refine is None and not options.keep_maps:
            # the planes never exist
            with clock.stage("localize"):
                marked = self._maps.mark(inferred, present, size, background=score, **maps_rule, **rule)
            return Marked(_decision(marked), None)
        background: Any = score
        with clock.stage("localize"):
            if segments:
                wanted = segment.planes_of(present, has_background=card.has_background)
                planes = self._maps.segments(inferred, wanted, size)
                if card.has_background:
                    background, planes = planes[0], planes[1:]
            else:
                planes = self._maps.planes(inferred, present, size, **maps_rule)
            self._maps.streams.wait()
        sure = None
        if self._refine is not None:
            with clock.stage("refine"):
                refined, sure = self._refine(image, self._maps.stacked(background, planes, clip=segments))
                planes = refined[1:]
                # a model that knows no background gets none from the refiner
                background = refined[0] if not segments or card.has_background else background
                self._maps.streams.wait()
        with clock.stage("decide"):
            marked = self._maps.decide(planes, present, background=background, sure_background=sure, **rule)
        return Marked(_decision(marked), self._maps.to_host(planes) if options.keep_maps else None)

    @contextmanager
    def _errors(self, shape: Sequence[int]) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            # torch says by the text alone whether memory ran out or the device is lost
            sides = shape[:2] if len(shape) == 3 else shape[-2:]
            raise engine_error(error, self._backend, tuple(sides)) from error


def _decision(marked: Any) -> localize.Decision:
    return localize.Decision(marked.mask, min(max(marked.confidence, 0.0), 1.0), marked.class_scores)
