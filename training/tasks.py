"""What differs between learning from tags and learning from masks; the loop is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from wsss_rt.classes import NARROW_CLASSES, is_wide
from wsss_rt.errors import UsageError
from wsss_rt.model_card import InputSpec, Recommended
from wsss_rt.training.config import TrainConfig
from wsss_rt.training.data.loader import TrainingImages
from wsss_rt.training.data.pairs import MaskedImages
from wsss_rt.training.data.planes import PlaneImages, find_planes
from wsss_rt.training.data.sources import Source
from wsss_rt.training.models.psa import PSA
from wsss_rt.training.models.segmenter import Segmenter
from wsss_rt.training.segment_validation import evaluate_segmentation, recommend_segmenter
from wsss_rt.training.setup import wanted_planes
from wsss_rt.training.validation import current_kinds, evaluate_localization, map_kinds, recommend


@dataclass(frozen=True)
class Look:
    """How to run a validation.

    Attributes:
        spec: input policy.
        final: the last one, on which the card's settings stand; one on the way may be quick.
        autocast: makes a context to run the model in.
        tick: called before each image; may raise to stop.
    """

    spec: InputSpec
    final: bool
    autocast: Callable[[], AbstractContextManager[Any]]
    tick: Callable[[], None]


class Task(Protocol):
    """What a model learns, how that is measured, and what follows for its card."""

    @property
    def measures(self) -> bool:
        """Whether validation images say how good the model is."""
        ...

    def dataset(self, source: Source, config: TrainConfig) -> Dataset[Any]:
        """Augmented images and what the model's ``losses`` wants beside them, by the loader's keys."""
        ...

    def validate(self, dataset: Source, look: Look) -> dict[str, Any]:
        """Figures; ``miou`` by kind of map, where there are masks."""
        ...

    def lines(self, measured: Mapping[str, Any]) -> list[str]:
        """The figures for a person: a headline, and details."""
        ...

    def recommend(
        self, measured: Mapping[str, Any], *, data: str, final: bool
    ) -> tuple[Recommended, dict[str, Any]]:
        """Settings for the card, and options of the model."""
        ...


def task_of(model: torch.nn.Module, *, num_classes: int) -> Task:
    """The task that a model is for."""
    if isinstance(model, Segmenter):
        return FromMasks(model)
    return FromMaskPairs() if isinstance(model, PSA) else FromTags(model, num_classes)


@dataclass(frozen=True)
class FromTags:
    """A localizer; planes beside the tags where a method uses them and a run has them."""

    model: torch.nn.Module
    num_classes: int
    measures: bool = True

    def dataset(self, source: Source, config: TrainConfig) -> Dataset[Any]:
        """See :class:`Task`.

        Raises:
            UsageError, WsssError: as ``find_planes``.
        """
        if names := wanted_planes(config):
            return PlaneImages(
                source,
                find_planes(source, config.data, names),
                num_classes=self.num_classes,
                augment=config.data.augment,
                crop_scale=config.data.crop_scale,
                seed=config.run.seed,
            )
        return TrainingImages(
            source,
            num_classes=self.num_classes,
            augment=config.data.augment,
            crop_scale=config.data.crop_scale,
            seed=config.run.seed,
        )

    def validate(self, dataset: Source, look: Look) -> dict[str, Any]:
        """See :class:`Task`; all kinds of map in the end, the current ones on the way."""
        return evaluate_localization(
            self.model,
            dataset,
            kinds=map_kinds(self.model) if look.final else current_kinds(self.model),
            spec=look.spec,
            autocast=look.autocast,
            tick=look.tick,
        )

    def lines(self, measured: Mapping[str, Any]) -> list[str]:
        """See :class:`Task`."""
        found = [f"mAP {measured['map']:.3f}"]
        for kind, value in measured.get("miou", {}).items():
            predicted = measured["miou_predicted"][kind]
            at = measured["background"][kind]
            found.append(
                f"{kind}: mIoU {value:.3f} given tags, {predicted:.3f} predicted, background {at:.2f}"
            )
        return found

    def recommend(
        self, measured: Mapping[str, Any], *, data: str, final: bool
    ) -> tuple[Recommended, dict[str, Any]]:
        """See :class:`Task`."""
        kinds = map_kinds(self.model) if final else current_kinds(self.model)
        return recommend(measured, data=data, kinds=kinds) if measured else (Recommended(), {})


@dataclass(frozen=True)
class FromMasks:
    """A segmenter."""

    model: Segmenter
    measures: bool = True

    def dataset(self, source: Source, config: TrainConfig) -> Dataset[Any]:
        """See :class:`Task`.

        Raises:
            UsageError: more classes than a target of 8 bits can tell apart.
        """
        if is_wide(self.model.num_classes):
            raise UsageError(
                f"a segmenter learns at most {NARROW_CLASSES} classes, and here are {self.model.num_classes}",
                fix="join classes, or train one model for each part of them",
            )
        return MaskedImages(
            source,
            background=self.model.background,
            augment=config.data.augment,
            crop_scale=config.data.crop_scale,
            seed=config.run.seed,
        )

    def validate(self, dataset: Source, look: Look) -> dict[str, Any]:
        """See :class:`Task`."""
        return evaluate_segmentation(
            self.model, dataset, spec=look.spec, autocast=look.autocast, tick=look.tick
        )

    def lines(self, measured: Mapping[str, Any]) -> list[str]:
        """See :class:`Task`."""
        (value,) = measured["miou"].values()
        return [f"mIoU {value:.3f}, pixel accuracy {measured['pixel_accuracy'] or 0:.3f}"]

    def recommend(
        self, measured: Mapping[str, Any], *, data: str, final: bool
    ) -> tuple[Recommended, dict[str, Any]]:
        """See :class:`Task`."""
        return recommend_segmenter(measured, data=data), {}


@dataclass(frozen=True)
class FromMaskPairs:
    """An affinity net. What it is worth shows in masks that it refined, and is measured there."""

    measures: bool = False

    def dataset(self, source: Source, config: TrainConfig) -> Dataset[Any]:
        """See :class:`Task`.

        Raises:
            UsageError, WsssError: as ``find_planes``.
        """
        return PlaneImages(
            source,
            find_planes(source, config.data, wanted_planes(config)),
            num_classes=None,
            augment=config.data.augment,
            crop_scale=config.data.crop_scale,
            seed=config.run.seed,
        )

    def validate(self, dataset: Source, look: Look) -> dict[str, Any]:
        """See :class:`Task`; nothing is measured."""
        return {}

    def lines(self, measured: Mapping[str, Any]) -> list[str]:
        """See :class:`Task`."""
        return ["nothing to measure"]

    def recommend(
        self, measured: Mapping[str, Any], *, data: str, final: bool
    ) -> tuple[Recommended, dict[str, Any]]:
        """See :class:`Task`."""
        return Recommended(), {}
