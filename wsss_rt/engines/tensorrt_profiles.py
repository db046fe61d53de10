"""The sizes and batches that a TensorRT plan is built for, and which of them serves a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsss_rt.errors import ImageError, ImageErrorCode

if TYPE_CHECKING:
    from wsss_rt.model_card import ModelCard

Shape = tuple[int, int, int, int]

# an image and its mirror image
_PAIR = 2
# (largest side, tuned for, largest batch): tokens grow with the side's square, and attention with theirs
_BUCKETS = ((288, (224, 224), 32), (576, (384, 512), 16))
# a panorama of the largest area that a card allows is at most this much longer than a square
_LONGEST = 1.5


@dataclass(frozen=True)
class Profile:
    """One optimisation profile: kernels are chosen for ``opt``, and run for all between ``min`` and ``max``.

    Attributes:
        min, opt, max: (B, 3, H, W).
    """

    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        if not all(
            low <= middle <= high for low, middle, high in zip(self.min, self.opt, self.max, strict=True)
        ):
            raise ValueError(f"{self.min}, {self.opt}, {self.max} do not rise")

    def holds(self, height: int, width: int) -> bool:
        """Whether images of this size run in it, in batches of some size."""
        return self.min[2] <= height <= self.max[2] and self.min[3] <= width <= self.max[3]

    def within(self, shape: Sequence[int]) -> Profile:
        """The same with the sides that a graph's input has fixed; -1 is a free one."""

        def fixed(sides: Shape) -> Shape:
            batch, channels, height, width = (
                own if given < 0 else int(given) for own, given in zip(sides, shape, strict=True)
            )
            return batch, channels, height, width

        return Profile(fixed(self.min), fixed(self.opt), fixed(self.max))

    def as_dict(self) -> dict[str, list[int]]:
        """For JSON."""
        return {"min": list(self.min), "opt": list(self.opt), "max": list(self.max)}


def default_profiles(card: ModelCard) -> tuple[Profile, ...]:
    """Two profiles per bucket of sizes, for an image with its mirror image and for full batches.

    A model that sees one size only (``fixed``, or windows) gets that size; another one buckets up to 288 and
    576 px a side, and one for all larger inputs that its card lets through.
    """
    spec = card.input
    fixed = spec.window or (spec.size if spec.size_policy == "fixed" else None)
    if fixed is not None:
        # a smaller image than a window runs as it is
        low = spec.patch if spec.window else fixed
        most = max(1, _BUCKETS[0][2] * _BUCKETS[0][0] ** 2 // fixed**2)
        return _pair(low, (fixed, fixed), fixed, max(_PAIR, most))
    profiles: list[Profile] = []
    for largest, tuned, batch in _BUCKETS:
        profiles += _pair(spec.patch, tuned, largest, batch)
    side = math.ceil(_LONGEST * math.sqrt(spec.max_pixels) / spec.patch) * spec.patch
    if side > _BUCKETS[-1][0]:
        high = (_PAIR, 3, side, side)
        opt = (_PAIR, 3, min(768, side), min(1024, side))
        profiles.append(Profile((1, 3, spec.patch, spec.patch), opt, high))
    return tuple(profiles)


def choose(profiles: Sequence[Profile], batch: int, height: int, width: int) -> tuple[int, int]:
    """Which profile a batch runs in, and how many of its images at once.

    The smallest sizes that hold the images win, and among them the smallest batch that holds all of them;
    where none does, the largest.

    Raises:
        ImageError: code ``too_large`` or ``too_small``: none holds images of this size.
    """
    fitting = [index for index, profile in enumerate(profiles) if profile.holds(height, width)]
    if not fitting:
        sides = (
            min(min(profile.min[2:]) for profile in profiles),
            max(max(profile.max[2:]) for profile in profiles),
        )
        small = min(height, width) < sides[0]
        raise ImageError(
            ImageErrorCode.TOO_SMALL if small else ImageErrorCode.TOO_LARGE,
            f"an input of {width}x{height} px is outside of what the TensorRT plan was built for",
            why=f"its sides go from {sides[0]} to {sides[1]} px",
            fix="use --backend onnxruntime for such images, or smaller --scales",
        )

    def rank(index: int) -> tuple[int, int, int]:
        top = profiles[index].max
        enough = top[0] >= batch
        return (top[2] * top[3], 0 if enough else 1, top[0] if enough else -top[0])

    best = min(fitting, key=rank)
    return best, min(batch, profiles[best].max[0])


def profiles_of(engine: Any, name: str) -> tuple[Profile, ...]:
    """What an ``ICudaEngine`` says that it was built for.

    Args:
        engine: ``ICudaEngine``.
        name: of its input.
    """
    found = []
    for index in range(int(engine.num_optimization_profiles)):
        shapes = [tuple(int(side) for side in dims) for dims in engine.get_tensor_profile_shape(name, index)]
        low, middle, high = ((sides[0], sides[1], sides[2], sides[3]) for sides in shapes)
        found.append(Profile(low, middle, high))
    return tuple(found)


def _pair(low: int, tuned: tuple[int, int], high: int, batch: int) -> tuple[Profile, Profile]:
    opt = (max(low, min(tuned[0], high)), max(low, min(tuned[1], high)))
    few = Profile((1, 3, low, low), (_PAIR, 3, *opt), (_PAIR, 3, high, high))
    many = Profile((1, 3, low, low), (batch, 3, *opt), (batch, 3, high, high))
    return few, many
