"""What a random walk can be told, and the presets of the literature; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from types import MappingProxyType

from wsss_rt.errors import UsageError, nearest

#: Distance, exclusive, within which two cells of the grid are a pair (PSA, CVPR 2018).
RADIUS = 5
#: Input pixels per cell.
STRIDE = 8


@dataclass(frozen=True)
class WalkParams:
    """Parameters of a random walk.

    Attributes:
        radius: cells nearer than this to each other are pairs; at most the radius of the affinity model.
        beta: exponent of the affinity, > 0; the larger, the harder a boundary is to cross.
        steps: of the walk; PSA squares its matrix 8 times, which is 256 steps.
        alpha: the background's score becomes (1 - best class)^alpha; None keeps what the caller gives.

    Raises:
        UsageError: a value out of range.
    """

    radius: int = RADIUS
    beta: float = 8.0
    steps: int = 64
    alpha: float | None = None

    def __post_init__(self) -> None:
        for name, least, most, given in (
            ("radius", 2, 32, self.radius),
            ("beta", 0.01, 1e3, self.beta),
            ("steps", 0, 65_536, self.steps),
            ("alpha", 0, 1e6, 1 if self.alpha is None else self.alpha),
        ):
            # written so that NaN is refused too
            if not least <= given <= most:
                raise UsageError(f"walk-{name} must be in {least:g}..{most:g}, not {given}")


# mctformer: of MCTformer's copy of PSA, with the background that --background says (theirs is 0.39).
# psa: PSA's own number of steps and background.
PRESETS: Mapping[str, WalkParams] = MappingProxyType(
    {"mctformer": WalkParams(), "psa": WalkParams(steps=256, alpha=16.0)}
)
DEFAULT_PRESET = "mctformer"


def walk_params(
    preset: str = DEFAULT_PRESET, changes: Mapping[str, float | None] | None = None
) -> WalkParams:
    """A preset with some fields changed.

    Args:
        preset: name of a preset.
        changes: fields of :class:`WalkParams` and their values.

    Raises:
        UsageError: no such preset or field, or a value out of range.
    """
    if preset not in PRESETS:
        raise UsageError(f"no walk preset named {preset!r}", fix=nearest(preset, PRESETS))
    known = [entry.name for entry in fields(WalkParams)]
    for name in changes or {}:
        if name not in known:
            raise UsageError(f"a walk has no parameter {name!r}", fix=nearest(name, known))
    return replace(PRESETS[preset], **(changes or {}))  # type: ignore[arg-type]


@lru_cache(maxsize=8)
def pair_offsets(radius: int = RADIUS) -> tuple[tuple[int, int], ...]:
    """(rows, columns) from a cell to those that it forms a pair with, each pair once.

    Radius 5 gives 34: (0, 1) to (0, 4), then rows 1 to 4 with columns from -4 to 4 nearer than 5.
    """
    first = [(0, dx) for dx in range(1, radius)]
    others = [
        (dy, dx)
        for dy in range(1, radius)
        for dx in range(1 - radius, radius)
        if dx * dx + dy * dy < radius * radius
    ]
    return (*first, *others)
