"""Who turns pixels into an engine's input and its maps into a mask: numpy here, or torch on its device.

The stages ask one of the two and do not know which. Both give the same masks, to the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from wsss_rt import localize, segment
from wsss_rt.engines.base import EngineOutput
from wsss_rt.errors import UsageError
from wsss_rt.timing import Stopwatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.engines.base import Engine, TensorEngine
    from wsss_rt.options import LabelOptions
    from wsss_rt.refine import Refiner

# enough to fill a GPU with photographs, of which those of one shape share a call; not measured yet
AUTO_BATCH_GPU = 16


@dataclass(frozen=True)
class Settled:
    """What the model said of an image, as far as numbers tell it.

    Attributes:
        scores: per pass (F, C) float32 logits.
        milliseconds: this image's share of what the engine took for its batch.
        notes: what its record is to say of how it was run.
    """

    scores: list[NDArray[np.float32]]
    milliseconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Marked:
    """A mask, and the maps behind it where they are to be kept.

    Attributes:
        decision: see :class:`wsss_rt.localize.Decision`.
        maps: (classes, H, W) float32, upright; None unless the options keep them.
    """

    decision: localize.Decision
    maps: NDArray[np.float32] | None


class Localization(Protocol):
    """Everything between an image's pixels and its mask.

    Attributes:
        name: ``numpy`` or ``torch``, for run.json.
        batch: images that should share a call of the engine, where the user does not say.
        kernels: by operator of ``wsss_rt.kernels`` that takes part: its ``path``, ``triton`` or
            ``reference``, and the ``reason``; for run.json.
    """

    name: str
    batch: int

    @property
    def kernels(self) -> dict[str, dict[str, str]]: ...

    def warm_up(self, announce: Callable[[str], None], stop: Callable[[], bool]) -> None:
        """Find out once what a device can run.

        Args:
            announce: gets a line before anything that takes long.
            stop: asked meanwhile; True ends it.
        """
        ...

    def prepare(self, image: NDArray[np.uint8]) -> list[Any]:
        """The passes of an image (H, W, 3) uint8 RGB, upright; thread-safe. Each has a ``shape``."""
        ...

    def infer(self, group: Sequence[Sequence[Any]], given: Sequence[tuple[int, ...] | None]) -> list[Any]:
        """What the model says of each image of a batch; called from one thread.

        Args:
            group: per image its passes, of the same shapes for all.
            given: per image the 0-based indices of the classes that its tags name; None where the model
                is to predict them.

        Raises:
            ImageError: the engine failed on this input.
        """
        ...

    def settle(self, inferred: Any) -> Settled:
        """Wait for an image's numbers; thread-safe, as what follows.

        Raises:
            ImageError: ``nonfinite_output``: they hold NaN or infinity, or the maps do.
        """
        ...

    def mark(
        self, inferred: Any, image: NDArray[np.uint8], present: tuple[int, ...], clock: Stopwatch
    ) -> Marked:
        """The mask of an image.

        Args:
            inferred: settled.
            image: (H, W, 3) uint8 RGB, upright.
            present: 0-based indices of the classes to look for, ascending.
            clock: gets the stages ``localize``, ``refine`` and ``decide``.

        Raises:
            ImageError: a refiner cannot take this image.
        """
        ...


def open_localization(engine: Engine, options: LabelOptions, refiner: Refiner | None) -> Localization:
    """On the engine's device, where its outputs can stay there and that is a GPU; else in numpy.

    Args:
        engine: runs the model.
        options: resolved against the card; ``localization`` may ask for either.
        refiner: None leaves the scores as they are.

    Raises:
        UsageError: torch is asked for, and the engine gives no tensors.
    """
    able = hasattr(engine, "run_tensors")
    if options.localization == "torch" and not able:
        raise UsageError(
            f"maps of the backend {engine.backend} cannot stay on {engine.device}",
            why="it gives arrays, or slides a window over the image",
            fix="leave localization at auto",
        )
    exact = getattr(engine, "exact", None)
    if exact is not None:
        from wsss_rt.second_look import SecondLook

        fast, again = (HostLocalization(one, options, refiner) for one in (engine, exact))
        return SecondLook(fast, again, card=engine.card, background=float(options.background or 0.0))
    # on a CPU numpy and OpenCV are quicker
    if (
        options.localization == "numpy"
        or not able
        or (options.localization == "auto" and engine.device == "cpu")
    ):
        return HostLocalization(engine, options, refiner)
    from wsss_rt.device_localization import DeviceLocalization

    return DeviceLocalization(cast("TensorEngine", engine), options, refiner)


def auto_batch(engine: Engine, *, flip: bool) -> int:
    """Images of a batch where the user does not say; engines make smaller ones where memory is small."""
    if engine.device != "cpu":
        return AUTO_BATCH_GPU
    # an image and its mirror image are two for an engine that runs several at once; others they fill
    lanes: int = getattr(engine, "lanes", 1)
    return max(1, lanes // (2 if flip else 1))


@dataclass(frozen=True)
class HostInferred:
    """What the model says of one image.

    Attributes:
        outputs: per pass.
        milliseconds: this image's share of what the engine took for its batch.
        notes: see :class:`Settled`.
    """

    outputs: list[EngineOutput]
    milliseconds: float
    notes: tuple[str, ...] = ()

    def after(self, first: HostInferred, note: str) -> HostInferred:
        """This, found in a second run after ``first``."""
        return HostInferred(self.outputs, first.milliseconds + self.milliseconds, (*first.notes, note))


class HostLocalization:
    """In numpy; see :class:`Localization`. Arguments as :func:`open_localization` takes them."""

    name = "numpy"

    def __init__(self, engine: Engine, options: LabelOptions, refiner: Refiner | None) -> None:
        self._engine, self._options, self._refiner = engine, options, refiner
        self.batch = auto_batch(engine, flip=bool(options.flip))
        self.kernels: dict[str, dict[str, str]] = {}

    def warm_up(self, announce: Callable[[str], None], stop: Callable[[], bool]) -> None:
        """Nothing to find out."""

    def prepare(self, image: NDArray[np.uint8]) -> list[localize.Pass]:
        """See :meth:`Localization.prepare`."""
        options = self._options
        return localize.prepare_passes(
            image, self._engine.card.input, scales=options.scales or (1.0,), flip=bool(options.flip)
        )

    def infer(
        self, group: Sequence[Sequence[localize.Pass]], given: Sequence[tuple[int, ...] | None]
    ) -> list[HostInferred]:
        """See :meth:`Localization.infer`."""
        clock = Stopwatch()
        outputs: list[list[EngineOutput]] = [[] for _ in group]
        with clock.stage("infer"):
            for parts in zip(*group, strict=True):
                rows, images = len(parts[0].images), parts[0].images
                if len(parts) > 1:
                    images = np.concatenate([part.images for part in parts])
                output = self._engine.infer(images)
                for index, own in enumerate(outputs):
                    cut = slice(index * rows, (index + 1) * rows)
                    own.append(EngineOutput(output.scores[cut], output.maps[cut]))
        return [HostInferred(own, clock.milliseconds["infer"] / len(group)) for own in outputs]

    def settle(self, inferred: HostInferred) -> Settled:
        """See :meth:`Localization.settle`."""
        localize.check_finite(inferred.outputs)
        scores = [output.scores for output in inferred.outputs]
        return Settled(scores, inferred.milliseconds, inferred.notes)

    def mark(
        self,
        inferred: HostInferred,
        image: NDArray[np.uint8],
        present: tuple[int, ...],
        clock: Stopwatch,
    ) -> Marked:
        """See :meth:`Localization.mark`."""
        card, size = self._engine.card, (image.shape[0], image.shape[1])
        sure_background: NDArray[np.bool_] | None = None
        with clock.stage("localize"):
            background, planes, maps = self._class_planes(
                [output.maps for output in inferred.outputs], present, size
            )
        if self._refiner is not None and maps is not None:
            with clock.stage("refine"):
                refined, sure_background = self._refiner(image, self._refinable(background, maps))
                maps = refined[1:]
                planes = iter(maps)
                # a model that knows no background gets none from the refiner
                if card.kind != "segmenter" or card.has_background:
                    background = refined[0]
        decider = localize.Decider(
            size,
            num_classes=len(card.classes),
            background=background,
            ignore_band=self._options.ignore_band,
            sure_background=sure_background,
        )
        for index in present:
            with clock.stage("localize"):
                plane = next(planes)
            with clock.stage("decide"):
                decider.add(plane, index)
        with clock.stage("decide"):
            decision = decider.finish()
        return Marked(decision, maps if self._options.keep_maps else None)

    def _class_planes(
        self, maps: list[NDArray[np.float32]], present: tuple[int, ...], size: tuple[int, int]
    ) -> tuple[float | NDArray[np.float32], Iterator[NDArray[np.float32]], NDArray[np.float32] | None]:
        """Background, a score or a plane; the planes of the present classes; and these as one array
        (C', H, W) where something needs them together."""
        card = self._engine.card
        if card.kind == "segmenter":
            planes = segment.planes_of(present, has_background=card.has_background)
            merged = segment.merge_passes(maps, size=size, planes=planes)
            background, values = segment.split_background(merged, has_background=card.has_background)
            return background, iter(values), values
        score = float(self._options.background or 0.0)
        if self._refiner is None and not self._options.keep_maps:
            # all classes at once are gigabytes at full size where there are many
            return score, localize.merged_planes(maps, present, size=size, rule=card.maps), None
        values = localize.merge_passes(maps, present, size=size, rule=card.maps)
        return score, iter(values), values

    def _refinable(
        self, background: float | NDArray[np.float32], maps: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Scores as refiners take them, in 0..1, background first; a segmenter's may lie outside."""
        scores = np.empty((len(maps) + 1, *maps.shape[1:]), np.float32)
        scores[0], scores[1:] = background, maps
        return np.clip(scores, 0, 1, out=scores) if self._engine.card.kind == "segmenter" else scores
