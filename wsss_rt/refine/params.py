"""What a CRF can be told, and the presets of the literature; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

from wsss_rt.errors import UsageError, nearest

# smaller probabilities count as this, so that no pixel is certain
LEAST_PROBABILITY = 1e-5


@dataclass(frozen=True)
class CrfParams:
    """Parameters of a dense CRF.

    Attributes:
        spatial_sxy: standard deviation of the kernel in position, pixels, > 0.
        spatial_compat: its strength, >= 0.
        bilateral_sxy: standard deviation in position of the kernel in position and colour, pixels, > 0.
        bilateral_srgb: its standard deviation in colour, levels of 0..255, > 0.
        bilateral_compat: its strength, >= 0.
        iterations: steps of mean field, >= 0.
        alpha: the background's probability becomes (1 - best class)^alpha; None keeps what the caller gives.
        high_alpha: with it, only pixels that both alphas agree on get a label, as PSA's training labels: a
            class where it wins at ``alpha``, background where that wins at ``high_alpha``, else ignore. More
            than ``alpha``.
        stop: end early, one step after the first that changed the best class of at most this share of the
            pixels; 0 takes all steps.

    Raises:
        UsageError: a value out of range.
    """

    spatial_sxy: float = 3.0
    spatial_compat: float = 3.0
    bilateral_sxy: float = 80.0
    bilateral_srgb: float = 13.0
    bilateral_compat: float = 10.0
    iterations: int = 10
    alpha: float | None = None
    high_alpha: float | None = None
    stop: float = 0.0

    def __post_init__(self) -> None:
        for name, least, given in (
            ("spatial-sxy", 0.1, self.spatial_sxy),
            ("bilateral-sxy", 0.1, self.bilateral_sxy),
            ("bilateral-srgb", 0.1, self.bilateral_srgb),
            ("spatial-compat", 0.0, self.spatial_compat),
            ("bilateral-compat", 0.0, self.bilateral_compat),
            ("alpha", 0.0, 1.0 if self.alpha is None else self.alpha),
        ):
            # written so that NaN is refused too
            if not least <= given <= 1e6:
                raise UsageError(f"crf-{name} must be at least {least:g} and finite, not {given}")
        if not 0 <= self.iterations <= 1000:
            raise UsageError(f"crf-iterations must be in 0..1000, not {self.iterations}")
        if not 0 <= self.stop < 1:
            raise UsageError(
                f"crf-stop must be in [0, 1), not {self.stop}", why="it is a share of the pixels"
            )
        if self.high_alpha is not None and not (self.alpha or 0) < self.high_alpha <= 1e6:
            raise UsageError(
                f"crf-alpha {self.alpha},{self.high_alpha} is not LOW < HIGH",
                why="a higher power makes less background",
            )


# mctformer: of the CRF behind MCTformer's pseudo-labels, with the background that --background says.
# psa: the same kernels with PSA's own background, its low and high alpha: labels to train AffinityNet on.
# segmentation: of MCTformer's second stage, for the output of a network trained on masks.
PRESETS: Mapping[str, CrfParams] = MappingProxyType(
    {
        "mctformer": CrfParams(),
        "psa": CrfParams(alpha=4.0, high_alpha=32.0),
        "segmentation": CrfParams(
            spatial_sxy=4.0, bilateral_sxy=83.0, bilateral_srgb=5.0, bilateral_compat=3.0
        ),
    }
)
# the one that helped most, and harmed least, in benchmarks/results/refine_quality.json
DEFAULT_PRESET = "segmentation"


def crf_params(preset: str = DEFAULT_PRESET, changes: Mapping[str, float | None] | None = None) -> CrfParams:
    """A preset with some fields changed.

    Args:
        preset: name of a preset.
        changes: fields of :class:`CrfParams` and their values.

    Raises:
        UsageError: no such preset or field, or a value out of range.
    """
    if preset not in PRESETS:
        raise UsageError(f"no CRF preset named {preset!r}", fix=nearest(preset, PRESETS))
    known = [entry.name for entry in fields(CrfParams)]
    for name in changes or {}:
        if name not in known:
            raise UsageError(f"a CRF has no parameter {name!r}", fix=nearest(name, known))
    return replace(PRESETS[preset], **(changes or {}))  # type: ignore[arg-type]
