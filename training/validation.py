"""How good tags and maps are on images that training never saw, and which settings that recommends.

Images take the very path of labelling: the card's input policy, mirrored passes, the sum over passes, min-max
per class. So a threshold that is chosen here means the same there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from wsss_rt.localize import merge_passes, predict_tags, prepare_passes, tag_probabilities
from wsss_rt.metrics import ThresholdSweep, average_precision, nanmean
from wsss_rt.model_card import InputSpec, MapRule, Recommended
from wsss_rt.training.data.sources import Mask, Source

# background thresholds 0, 0.02 .. 0.9
THRESHOLDS = np.arange(46) * 0.02


@dataclass(frozen=True)
class MapKind:
    """A map that a model can give.

    Attributes:
        name: for tables, e.g. ``fused+affinity``.
        options: method options that make ``localize`` return it.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


def map_kinds(model: torch.nn.Module) -> list[MapKind]:
    """The maps between which validation can choose; where a model gives but one, that one."""
    types: Sequence[str] = getattr(model, "attention_types", ())
    refinements: dict[str, dict[str, Any]] = {"": {}}
    if hasattr(model, "affinity"):
        refinements = {"": {"affinity": False}, "+affinity": {"affinity": True}}
    if hasattr(model, "affinity_source"):
        refinements["+affinity"] = {"affinity": True, "affinity_source": "attention"}
        refinements["+similarity"] = {"affinity": True, "affinity_source": "tokens"}
    return [
        MapKind((name or "maps") + suffix, {**({"attention_type": name} if name else {}), **options})
        for name in types or ("",)
        for suffix, options in refinements.items()
    ]


def current_kinds(model: torch.nn.Module) -> list[MapKind]:
    """Those of :func:`map_kinds` with the fusion that the model is set to: a quick look while training."""
    fusion = getattr(model, "attention_type", None)
    return [kind for kind in map_kinds(model) if kind.options.get("attention_type") == fusion]


@torch.no_grad()
def evaluate_localization(
    model: torch.nn.Module,
    dataset: Source,
    *,
    kinds: Sequence[MapKind] | None = None,
    thresholds: ArrayLike | None = None,
    flip: bool = True,
    scales: Sequence[float] = (1.0,),
    spec: InputSpec | None = None,
    tag_thresholds: Sequence[float] | None = None,
    backgrounds: Mapping[str, float] | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    tick: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Measure tags, and maps where the images have masks.

    Args:
        model: a localizer, set to eval mode meanwhile.
        dataset: finite.
        kinds: maps to compare; default all that :func:`map_kinds` finds.
        thresholds: background thresholds, ascending; default 0, 0.02 .. 0.9.
        flip: also run every image mirrored.
        scales: of the image.
        spec: input policy; default native size.
        tag_thresholds: (C,) chosen elsewhere; default those with the highest F1 here.
        backgrounds: threshold per kind, chosen elsewhere; default the best one here.
        autocast: makes a context to run the model in; default float32.
        tick: called before each image; may raise to stop.

    Returns:
        ``images``; ``map`` (macro mean over classes of the tags' average precision, 0..1),
        ``average_precision`` per class (None where no image shows it), ``tag_thresholds`` per class (highest
        F1), ``tag_f1`` (macro); and with masks, by kind: ``miou`` at the best background threshold given the
        tags, ``background`` that threshold, ``iou`` per class with background first, ``curve`` mIoU per
        threshold, ``miou_predicted`` with predicted tags at the same threshold; ``thresholds``.
    """
    chosen = list(kinds) if kinds is not None else map_kinds(model)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    samples: list[tuple[tuple[int, ...], Mask | None, tuple[int, int]]] = []
    scores: list[NDArray[np.float32]] = []
    maps: list[dict[str, list[NDArray[np.float32]]]] = []
    try:
        for index in range(dataset.count or 0):
            if tick is not None:
                tick()
            sample = dataset.load(index, mask=True)
            wanted = chosen if sample.mask is not None else chosen[:1]
            passes = prepare_passes(sample.image, spec or InputSpec(), scales=scales, flip=flip)
            logits: list[NDArray[np.float32]] = []
            found: dict[str, list[NDArray[np.float32]]] = {kind.name: [] for kind in wanted}
            for one in passes:
                images = torch.from_numpy(one.images).to(device)
                with autocast():
                    per_kind = _localize(model, images, wanted)
                logits.append(next(iter(per_kind.values()))[0])
                for name, (_, values) in per_kind.items():
                    # mirror images are added here as merging would, which halves what is kept
                    found[name].append(values[:1] + values[1:, :, :, ::-1] if len(values) == 2 else values)
            scores.append(tag_probabilities(logits))
            # without a mask nothing is measured of the maps, and a thousand classes' are a megabyte an image
            maps.append(found if sample.mask is not None else {})
            samples.append((sample.tags, sample.mask, sample.image.shape[:2]))
    finally:
        model.train(was_training)
    if backgrounds is not None:
        thresholds = sorted({backgrounds[kind.name] for kind in chosen})
    return _measure(
        samples,
        np.stack(scores),
        maps,
        rule=getattr(model, "map_rule", MapRule()),
        thresholds=THRESHOLDS if thresholds is None else thresholds,
        tag_thresholds=tag_thresholds,
        backgrounds=backgrounds,
    )


def recommend(
    measured: Mapping[str, Any], *, data: str, kinds: Sequence[MapKind], flip: bool = True
) -> tuple[Recommended, dict[str, Any]]:
    """The settings that a validation speaks for.

    Args:
        measured: of :func:`evaluate_localization`.
        data: what it was measured on, for the provenance.
        kinds: the kinds that were compared.
        flip: as in the measurement.

    Returns:
        For the card, and the method options of the best map. Without masks only the tag thresholds are tuned.
    """
    thresholds = tuple(round(float(value), 4) for value in measured["tag_thresholds"])
    if not measured.get("miou"):
        where = f"{measured['images']} images of {data}"
        text = f"tag thresholds: highest F1 per class on {where}; background not tuned"
        return Recommended(tag_thresholds=thresholds, flip=flip, provenance=text), {}
    best = max(measured["miou"], key=lambda name: measured["miou"][name])
    background = measured["background"][best]
    text = (
        f"{measured['images']} images of {data}: map {best} and background threshold by the highest mIoU "
        f"({measured['miou'][best]:.3f} given tags, {measured['miou_predicted'][best]:.3f} predicted), "
        f"tag thresholds by the highest F1 per class"
    )
    options = next(dict(kind.options) for kind in kinds if kind.name == best)
    return Recommended(
        background=round(float(background), 4), tag_thresholds=thresholds, flip=flip, provenance=text
    ), options


def best_f1_threshold(probabilities: NDArray[np.floating], present: NDArray[np.bool_]) -> tuple[float, float]:
    """The threshold with the highest F1, half-way to the next lower probability, and that F1.

    Args:
        probabilities: (N,) of one class, 0..1.
        present: (N,) whether the image shows it; without any the threshold is 0.5 and F1 is nan.
    """
    if not present.any():
        return 0.5, float("nan")
    order = np.argsort(-probabilities, kind="stable")
    ranked, hits = probabilities[order].astype(np.float64), np.cumsum(present[order])
    f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + int(present.sum()))
    # a threshold cannot part equal probabilities
    f1[:-1][ranked[:-1] == ranked[1:]] = 0
    last = int(f1.argmax())
    below = ranked[last + 1] if last + 1 < len(ranked) else 0.0
    return float((ranked[last] + below) / 2), float(f1[last])


def _localize(
    model: torch.nn.Module, images: torch.Tensor, kinds: Sequence[MapKind]
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Scores (F, C) and maps (F, C, h, w) per kind."""
    outputs = model.localize_each(images, [kind.options for kind in kinds])  # type: ignore[operator]
    return {
        kind.name: (output.scores.float().cpu().numpy(), output.maps.float().cpu().numpy())
        for kind, output in zip(kinds, outputs, strict=True)
    }


def _measure(
    samples: Sequence[tuple[tuple[int, ...], Mask | None, tuple[int, int]]],
    probabilities: NDArray[np.float32],
    maps: Sequence[Mapping[str, Sequence[NDArray[np.float32]]]],
    *,
    rule: MapRule,
    thresholds: ArrayLike,
    tag_thresholds: Sequence[float] | None,
    backgrounds: Mapping[str, float] | None,
) -> dict[str, Any]:
    count, num_classes = probabilities.shape
    targets = np.zeros((count, num_classes), bool)
    for row, (tags, _, _) in enumerate(samples):
        targets[row, list(tags)] = True
    precision = average_precision(probabilities, targets)
    limits = [best_f1_threshold(probabilities[:, c], targets[:, c]) for c in range(num_classes)]
    measured: dict[str, Any] = {
        "images": count,
        "map": nanmean(precision),
        "average_precision": [None if np.isnan(value) else float(value) for value in precision],
        "tag_thresholds": list(tag_thresholds or [threshold for threshold, _ in limits]),
        "tag_f1": nanmean(np.array([f1 for _, f1 in limits])),
    }
    if not samples or any(mask is None for _, mask, _ in samples):
        return measured
    steps = np.asarray(thresholds, np.float64)
    measured.update(miou={}, background={}, iou={}, curve={}, miou_predicted={}, thresholds=steps.tolist())
    for kind in maps[0]:
        given, predicted = (ThresholdSweep(num_classes + 1, thresholds=steps) for _ in range(2))
        for row, (tags, mask, size) in enumerate(samples):
            assert mask is not None
            guessed = predict_tags(probabilities[row], measured["tag_thresholds"])
            either = sorted({*tags, *guessed})
            merged = merge_passes(maps[row][kind], either, size=size, rule=rule)
            given.update(merged[[either.index(tag) for tag in tags]], tags, mask)
            predicted.update(merged[[either.index(tag) for tag in guessed]], guessed, mask)
        curve, guess = given.result(), predicted.result()
        best = int(np.nanargmax(curve.miou))
        if backgrounds is not None:
            best = int(np.flatnonzero(steps == backgrounds[kind])[0])
        measured["miou"][kind] = float(curve.miou[best])
        measured["background"][kind] = float(steps[best])
        measured["iou"][kind] = [None if np.isnan(value) else float(value) for value in curve.iou[best]]
        measured["curve"][kind] = [float(value) for value in curve.miou]
        measured["miou_predicted"][kind] = float(guess.miou[best])
    return measured
