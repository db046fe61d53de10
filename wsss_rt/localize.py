"""From pixels to the model's input, and from its token maps to a mask: pure functions on numpy arrays.

The order of operations is the one of the official MCTformer generation loop, so that its numbers are
reached to rounding; where algebra allows it, the same result is computed on the small token grid instead of
on the pixels (bilinear upsampling is linear and commutes with mirroring).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

from wsss_rt.classes import BACKGROUND, NARROW_CLASSES, ignore_value, is_wide
from wsss_rt.errors import ImageError, ImageErrorCode
from wsss_rt.model_card import MapRule
from wsss_rt.resize import resize_map

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.engines.base import EngineOutput
    from wsss_rt.model_card import InputSpec

# keeps a constant map at 0 instead of 0/0, as the official code does
NORMALISE_EPSILON = 1e-8
# attention takes memory with the square of it: gigabytes from here on. A long strip would have many times as
# many when its shorter side is drawn up to the model's
_MOST_TOKENS = 4096


@dataclass(frozen=True)
class Pass:
    """One call of the model: an image at one scale, with its mirror image where flipping is on.

    Attributes:
        images: (F, 3, h, w) float32, normalised; row 1, where there is one, is row 0 mirrored.
        scale: the scale that was asked for.
    """

    images: NDArray[np.float32]
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Of ``images``."""
        return self.images.shape


@dataclass(frozen=True)
class Decision:
    """What the scores of an image come to.

    Attributes:
        mask: (H, W) uint8, or uint16 for more than 254 classes; 0 background, class index + 1, 255 or 65535
            ignore.
        confidence: mean over the pixels of the margin between the best and the second best among
            background and classes, 0..1; 0 where no class competes.
        class_scores: per class of the input, its mean score over the pixels that it won, 0..1.
    """

    mask: NDArray[np.uint8] | NDArray[np.uint16]
    confidence: float
    class_scores: tuple[float, ...]


def pass_sizes(
    size: tuple[int, int], spec: InputSpec, *, scales: Sequence[float] = (1.0,)
) -> tuple[list[tuple[int, int]], tuple[str, ...]]:
    """Input size of every pass, and what had to be done to the image to get there.

    Args:
        size: (width, height) of the upright image, pixels.
        spec: the card's input policy.
        scales: scales of the passes.

    Returns:
        (width, height) per scale, and notes for the record.

    Sides round as Python's ``round`` does (127.5 becomes 128, 212.5 becomes 212). ``short_side`` rounds to
    whole tokens, because a model that drops the remainder would see its maps stretched over the image;
    ``native`` keeps the remainder, as the official generation does. No pass exceeds ``spec.max_pixels`` by
    more than rounding, nor 4,096 tokens where the shorter side is what counts; no side falls below one token.
    """
    width, height = size
    sizes: list[tuple[int, int]] = []
    notes: dict[str, None] = {}
    for scale in scales:
        if spec.size_policy == "fixed":
            side = max(spec.patch, round(_required_size(spec) * scale))
            sizes.append((side, side))
            continue
        factor = scale
        if spec.size_policy == "short_side":
            factor *= _required_size(spec) / min(width, height)
        most = spec.max_pixels
        if spec.size_policy == "short_side":
            most = min(most, _MOST_TOKENS * spec.patch**2)
        if width * height * factor * factor > most:
            factor = math.sqrt(most / (width * height))
            notes[f"scaled down to {most} pixels for the model"] = None
        step = spec.patch if spec.size_policy == "short_side" else 1
        sides = [step * round(side * factor / step) for side in (width, height)]
        if min(sides) < spec.patch:
            sides = [max(side, spec.patch) for side in sides]
            notes["a side was stretched to one token for the model"] = None
        sizes.append((sides[0], sides[1]))
    return sizes, tuple(notes)


def prepare_passes(
    image: NDArray[np.uint8], spec: InputSpec, *, scales: Sequence[float] = (1.0,), flip: bool = True
) -> list[Pass]:
    """The model's inputs for one image.

    Args:
        image: (H, W, 3) uint8 RGB, upright.
        spec: the card's input policy.
        scales: scales of the passes, in order.
        flip: add the mirror image to each pass.

    Returns:
        A pass per scale. Pixels are resized with Pillow's antialiased bicubic filter on uint8, divided by
        255, and normalised by the card's mean and std.
    """
    table = normalisation_table(spec.mean, spec.std)
    passes = []
    for scale, pixels in zip(scales, resized_pixels(image, spec, scales=scales), strict=True):
        batch = np.empty((2 if flip else 1, 3, *pixels.shape[:2]), np.float32)
        for channel in range(3):
            plane = np.ascontiguousarray(pixels[..., channel])
            np.take(table[channel], plane, mode="clip", out=batch[0, channel])
            if flip:
                batch[1, channel] = cv2.flip(batch[0, channel], 1)
        passes.append(Pass(batch, scale))
    return passes


def resized_pixels(
    image: NDArray[np.uint8], spec: InputSpec, *, scales: Sequence[float] = (1.0,)
) -> list[NDArray[np.uint8]]:
    """Pixels (h, w, 3) uint8 of every pass, see :func:`prepare_passes`; ``image`` itself where it fits."""
    height, width = image.shape[:2]
    sizes, _ = pass_sizes((width, height), spec, scales=scales)
    return [
        image
        if size == (width, height)
        else np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
        for size in sizes
    ]


def nonfinite(name: str) -> ImageError:
    """The error for ``scores`` or ``maps`` that hold NaN or infinity."""
    return ImageError(
        ImageErrorCode.NONFINITE_OUTPUT,
        f"the model's {name} hold NaN or infinity for this image",
        fix="try --precision float32 or another --backend",
    )


def check_finite(outputs: Sequence[EngineOutput]) -> None:
    """Refuse an output that holds NaN or infinity; it would become a plausible, wrong mask.

    Raises:
        ImageError: code ``nonfinite_output``.
    """
    for output in outputs:
        for name, values in (("scores", output.scores), ("maps", output.maps)):
            if not np.isfinite(values).all():
                raise nonfinite(name)


def merge_passes(
    maps: Sequence[NDArray[np.float32]],
    present: Sequence[int],
    *,
    size: tuple[int, int],
    rule: MapRule | None = None,
) -> NDArray[np.float32]:
    """Sum the passes' maps at image resolution and normalise each present class to 0..1.

    Args:
        maps: per pass (F, C, h, w) float32; row 1, where there is one, belongs to the mirror image.
        present: 0-based indices of the classes that the image's tags name.
        size: (H, W) of the result, pixels.
        rule: the card's; None is the default one.

    Returns:
        (len(present), H, W) float32 in 0..1: upsampling without antialiasing, the plain sum over passes, then
        per class (m - min) / (max - min + 1e-8), or max(m, 0) / (max + 1e-8).
    """
    merged = np.empty((len(present), *size), np.float32)
    planes = merged_planes(maps, present, size=size, rule=rule)
    for target, plane in zip(merged, planes, strict=True):
        target[:] = plane
    return merged


def merged_planes(
    maps: Sequence[NDArray[np.float32]],
    present: Sequence[int],
    *,
    size: tuple[int, int],
    rule: MapRule | None = None,
) -> Iterator[NDArray[np.float32]]:
    """The planes of :func:`merge_passes` one after another, for masks of many classes of large images."""
    rule = rule or MapRule()
    index = list(present)
    grids: dict[tuple[int, int], NDArray[np.float32]] = {}
    for entry in maps:
        tokens = entry[0, index]
        if len(entry) == 2:
            tokens = tokens + entry[1, index, :, ::-1]
        shape = (tokens.shape[1], tokens.shape[2])
        grids[shape] = grids[shape] + tokens if shape in grids else tokens
    for place in range(len(index)):
        plane = np.zeros(size, np.float32)
        for tokens in grids.values():
            plane += resize_map(tokens[place], size, upsample=rule.upsample)
        if rule.normalise == "peak":
            np.maximum(plane, 0, out=plane)
        low, high = (plane.min(), plane.max()) if rule.normalise == "minmax" else (0, plane.max())
        plane -= low
        plane /= high - low + np.float32(NORMALISE_EPSILON)
        yield plane


def tag_probabilities(scores: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Probability of each class: the sigmoid of its logit averaged over every scale and mirror image.

    Args:
        scores: per pass (F, C) float32 logits.

    Returns:
        (C,) float32 in 0..1.
    """
    logits = np.concatenate(list(scores)).astype(np.float64).mean(axis=0)
    # the form that cannot overflow
    return (0.5 * (1.0 + np.tanh(0.5 * logits))).astype(np.float32)


def predict_tags(probabilities: NDArray[np.float32], thresholds: Sequence[float]) -> tuple[int, ...]:
    """0-based indices of the classes whose probability reaches the card's threshold.

    Args:
        probabilities: (C,) in 0..1.
        thresholds: one per class; empty means 0.5 for all.
    """
    limits = np.asarray(thresholds if len(thresholds) else [0.5] * len(probabilities), np.float32)
    return tuple(int(index) for index in np.flatnonzero(probabilities >= limits))


class Decider:
    """The mask from one plane of scores after another: memory does not grow with the classes.

    Per pixel the best among background and classes wins; ties go to background, then to the first class.

    Args:
        size: (H, W) of the mask, pixels.
        num_classes: of the model, which decides whether the mask has 8 bits or 16.
        background: a constant score, or a plane (H, W) where a refiner gave one.
        ignore_band: pixels whose best class score lies in [low, high) become the ignore value.
        sure_background: (H, W); background elsewhere becomes the ignore value, and everything here is
            background (the rule of PSA's training labels).
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        num_classes: int,
        background: float | NDArray[np.float32],
        ignore_band: tuple[float, float] | None = None,
        sure_background: NDArray[np.bool_] | None = None,
    ) -> None:
        self._mask = np.full(size, BACKGROUND, np.uint16 if is_wide(num_classes) else np.uint8)
        self._best: NDArray[np.float32] = np.empty(size, np.float32)
        self._best[:] = background
        self._second = np.zeros_like(self._best)
        self._band, self._sure_background = ignore_band, sure_background
        self._foreground = None if ignore_band is None else np.zeros_like(self._best)
        self._classes: list[int] = []

    def add(self, plane: NDArray[np.float32], index: int) -> None:
        """Let a class compete.

        Args:
            plane: (H, W) float32 scores in 0..1.
            index: 0-based, of the class.
        """
        np.copyto(self._mask, self._mask.dtype.type(index + 1), where=plane > self._best)
        np.maximum(self._second, np.minimum(plane, self._best), out=self._second)
        np.maximum(self._best, plane, out=self._best)
        if self._foreground is not None:
            np.maximum(self._foreground, plane, out=self._foreground)
        self._classes.append(index)

    def finish(self) -> Decision:
        """The mask of all classes so far; nothing can be added afterwards."""
        mask, best = self._mask, self._best
        confidence = float(np.mean(best - self._second, dtype=np.float64)) if self._classes else 0.0
        class_scores = []
        for index in self._classes:
            # where a class won, its score is the best one
            won = mask == index + 1
            class_scores.append(float(best[won].mean(dtype=np.float64)) if won.any() else 0.0)
        if self._sure_background is not None:
            mask[mask == BACKGROUND] = ignore_value(mask)
            mask[self._sure_background] = BACKGROUND
        if self._band is not None and self._foreground is not None:
            low, high = (np.float32(limit) for limit in self._band)
            mask[(self._foreground >= low) & (self._foreground < high)] = ignore_value(mask)
        return Decision(mask, min(max(confidence, 0.0), 1.0), tuple(class_scores))


def decide(
    maps: NDArray[np.float32],
    classes: Sequence[int],
    *,
    num_classes: int = NARROW_CLASSES,
    background: float | NDArray[np.float32],
    ignore_band: tuple[float, float] | None = None,
    sure_background: NDArray[np.bool_] | None = None,
) -> Decision:
    """The mask from all maps at once.

    Args:
        maps: (C', H, W) float32 scores in 0..1.
        classes: 0-based class index of each map.
        num_classes, background, ignore_band, sure_background: see :class:`Decider`.
    """
    decider = Decider(
        maps.shape[1:],
        num_classes=num_classes,
        background=background,
        ignore_band=ignore_band,
        sure_background=sure_background,
    )
    for plane, index in zip(maps, classes, strict=True):
        decider.add(plane, index)
    return decider.finish()


def _required_size(spec: InputSpec) -> int:
    if spec.size is None:
        raise ValueError(f"size policy {spec.size_policy!r} needs a size")
    return spec.size


@lru_cache(maxsize=8)
def normalisation_table(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """(3, 256) float32: the normalised value of every byte, so that a pixel costs one look-up."""
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    return np.stack(
        [(levels - np.float32(m)) / np.float32(s) for m, s in zip(mean, std, strict=True)]
    ).astype(np.float32)
