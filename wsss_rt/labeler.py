"""Labeler: images in, masks out; the stages run concurrently, and memory does not grow with the images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsss_rt.classes import ClassSet
from wsss_rt.engines.runtime import default_threads
from wsss_rt.engines.windows import windowed
from wsss_rt.errors import UsageError, nearest
from wsss_rt.model_card import refuse_kind
from wsss_rt.options import LabelOptions
from wsss_rt.pipeline import Stages, run_stages
from wsss_rt.refine import open_refiner
from wsss_rt.results import Result
from wsss_rt.stages import ImageStages, Work

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.engines.base import Engine
    from wsss_rt.io.sources import SourceImage
    from wsss_rt.tags import TagTable


class Labeler:
    """Turns images into masks with one model.

    Args:
        model: path of an artifact, or the name of an embedded model; None takes the newest embedded one.
        tags: a tag table, or what ``load_tags`` reads; None predicts the tags.
        engine: an engine that is already open, in place of ``model``; it stays open on :meth:`close`.
        options: how to label.
        **settings: fields of :class:`LabelOptions`, which go before those of ``options``.

    Attributes:
        engine: runs the model.
        card: of the model.
        classes: of the model.
        options: with the card's recommendations filled in.

    Raises:
        UsageError: an unknown setting, model, refiner or tag.
        WsssError: the model or the engine cannot be used.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        tags: TagTable | str | Path | None = None,
        engine: Engine | None = None,
        options: LabelOptions | None = None,
        **settings: Any,
    ) -> None:
        known = [entry.name for entry in fields(LabelOptions)]
        for name in settings:
            if name not in known:
                raise UsageError(f"no option {name!r}", fix=nearest(name, known))
        chosen = replace(options or LabelOptions(), **settings)
        self._refiner = open_refiner(chosen)
        self._owns_engine = engine is None
        self.engine = windowed(_open(model, chosen) if engine is None else engine)
        self.card = self.engine.card
        refuse_kind(self.card, "the model")
        self.classes = ClassSet(tuple(self.card.classes))
        self.options = chosen.resolved(self.card)
        if isinstance(tags, str | Path):
            from wsss_rt.tags import load_tags

            tags = load_tags(tags, classes=self.classes.names)
        self._tags = tags
        self._stages = ImageStages(self.engine, self.options, self._refiner)

    def __enter__(self) -> Labeler:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def workers(self) -> int:
        """Threads that read, decode, localize and encode."""
        return pool_size(self.options.threads)

    @property
    def localization(self) -> str:
        """What makes masks of the engine's maps: ``numpy`` on the host, or ``torch`` on its device."""
        return self._stages.localization.name

    def close(self) -> None:
        """Free the engine."""
        if self._owns_engine:
            self.engine.close()

    @property
    def kernels(self) -> dict[str, dict[str, str]]:
        """By operator that runs between maps and masks on a device: its ``path``, ``triton`` or
        ``reference``, and the ``reason``; empty in numpy."""
        return self._stages.localization.kernels

    def warm_up(self, announce: Callable[[str], None], stop: Callable[[], bool] = lambda: False) -> None:
        """Do what is done once on a machine: compile what a refiner needs, and prove the kernels of a GPU.

        Without it the first image waits for the compiler, and kernels that were never proven do not run.

        Args:
            announce: gets a line before anything that takes long.
            stop: asked while kernels are proven; True ends that.
        """
        if self._refiner is not None:
            self._refiner.warm_up(announce)
        self._stages.localization.warm_up(announce, stop)

    def label(self, image: NDArray[np.uint8] | str | Path, *, tags: Sequence[str] | None = None) -> Result:
        """Label one image; not to be called while a stream is being read.

        Args:
            image: a file, or (H, W, 3) uint8 RGB pixels, upright.
            tags: its classes; None asks the labeler's tag table for a file's, or predicts.

        Raises:
            UsageError: a tag that the model does not know.
            ValueError: an array of another shape or type.
        """
        given = None if tags is None else self._in_order(tags)
        if isinstance(image, np.ndarray):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
                raise ValueError(f"expected (H, W, 3) uint8 RGB, got {image.dtype} {image.shape}")
            work = self._stages.admit_pixels(Work(Result("image", self.classes), given), image)
        else:
            path = Path(image)
            work = Work(Result(path.name, self.classes, path=str(path)), given)
            if given is None:
                self._look_up(work, path.as_posix())
            self._stages.admit_file(work)
        self._stages.infer([work])
        return self._stages.finish(work)

    def stream(self, inputs: str | Path | Iterable[str | Path]) -> Iterator[Result]:
        """Label files, folders, globs and lists, in sorted order.

        Raises:
            UsageError: nothing to label.
        """
        from wsss_rt.io.sources import find_images

        several = [inputs] if isinstance(inputs, str | Path) else list(inputs)
        return self.stream_sources(find_images(several))

    def stream_sources(
        self, sources: Iterable[SourceImage], *, stop: threading.Event | None = None
    ) -> Iterator[Result]:
        """Label images that were found already; results come in the order of ``sources``.

        Args:
            sources: what to label.
            stop: once set, images in flight are finished and no other is begun.
        """
        batch = self.options.batch or self._stages.localization.batch
        # a batch on its way through a device holds a thread for each of its images, and those only wait
        waiting = batch if self.localization == "torch" else 0
        return run_stages(
            sources,
            Stages(before=self._admit, middle=self._stages.infer, after=self._stages.finish),
            workers=self.workers + waiting,
            batch=batch,
            stop=stop,
        )

    def _admit(self, source: SourceImage) -> Work:
        result = Result(source.relative, self.classes, path=str(source.path), mask_name=source.mask)
        work = Work(result)
        self._look_up(work, source.relative)
        return self._stages.admit_file(work)

    def _look_up(self, work: Work, name: str) -> None:
        if self._tags is None:
            return
        given = self._tags.lookup(name)
        if given is None:
            work.untagged = self._tags.source
        else:
            work.given = self._in_order(given)

    def _in_order(self, tags: Sequence[str]) -> tuple[str, ...]:
        """Tags without repetition, in class order; an unknown one is a UsageError."""
        return tuple(sorted(set(tags), key=self.classes.index))


def pool_size(threads: int | None) -> int:
    """Threads that read, decode, localize and encode, where so many processors are to be used."""
    return threads or max(2, default_threads())


def _open(model: str | Path | None, options: LabelOptions) -> Engine:
    from wsss_rt.assets import find_model
    from wsss_rt.engines import open_engine

    return open_engine(
        find_model(model),
        backend=options.backend,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        gate=not options.skip_parity,
    )
