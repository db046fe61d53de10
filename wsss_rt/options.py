"""How to label: what a caller may choose, and what the model's card decides where they don't."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wsss_rt.engines.runtime import check_threads
from wsss_rt.errors import UsageError, nearest
from wsss_rt.refine.params import CrfParams, crf_params
from wsss_rt.refine.walk_params import WalkParams

if TYPE_CHECKING:
    from wsss_rt.model_card import ModelCard

# the same as wsss_rt.io.decode.MAX_PIXELS, which costs an import of Pillow
MAX_PIXELS = 64_000_000
LOCALIZATIONS = ("auto", "numpy", "torch")


@dataclass(frozen=True)
class LabelOptions:
    """How to label. None means what the model's card recommends.

    Attributes:
        scales: image scales, each > 0.
        flip: also run each scale mirrored.
        background: constant score of the background, 0..1.
        ignore_band: (low, high); pixels whose best class score lies in [low, high) become the ignore value.
        refine: name of a refiner, or several joined by ``+``, which run in this order.
        crf, crf_backend: parameters of the refiner ``crf``, and who computes it.
        crf_memory: gigabytes that the CRF of one image may take; an image that needs more fails. None is 4
            on the host, and no limit on a GPU but its own.
        walk, affinity: parameters of the refiner ``walk``, and the file of its affinity model.
        backend, device, precision: as ``open_engine`` takes them.
        localization: ``numpy`` on the host, ``torch`` on the engine's device, or ``auto``: torch where the
            engine's outputs lie on a GPU.
        batch: images per call of the engine; 0 chooses.
        threads: processors to use; None takes all that the process may use.
        skip_parity: use an engine without comparing it with float32 first.
        max_pixels: a larger image is refused before it is decoded.
        keep_image, keep_maps: leave them in the result.

    Raises:
        UsageError: a value out of range.
    """

    scales: tuple[float, ...] | None = None
    flip: bool | None = None
    background: float | None = None
    ignore_band: tuple[float, float] | None = None
    refine: str = "none"
    crf: CrfParams = field(default_factory=crf_params)
    crf_backend: str = "numba"
    crf_memory: float | None = None
    walk: WalkParams = field(default_factory=WalkParams)
    affinity: str | None = None
    backend: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    localization: str = "auto"
    batch: int = 0
    threads: int | None = None
    skip_parity: bool = False
    max_pixels: int = MAX_PIXELS
    keep_image: bool = False
    keep_maps: bool = False

    def __post_init__(self) -> None:
        if self.scales is not None and (not self.scales or not all(0 < scale <= 8 for scale in self.scales)):
            raise UsageError(
                f"scales {list(self.scales)} are not all in (0, 8]", fix="for example --scales 1.0,0.75"
            )
        if self.background is not None and not 0 <= self.background <= 1:
            raise UsageError(f"background {self.background} is not in 0..1", why="class scores are 0..1")
        if self.ignore_band is not None and not 0 <= self.ignore_band[0] < self.ignore_band[1] <= 1:
            raise UsageError(
                f"ignore band {self.ignore_band[0]},{self.ignore_band[1]} is not 0 <= LO < HI <= 1",
                why="pixels whose best class score lies in [LO, HI) become the ignore value",
            )
        if self.localization not in LOCALIZATIONS:
            raise UsageError(
                f"no localization {self.localization!r}", fix=nearest(self.localization, LOCALIZATIONS)
            )
        if self.crf_memory is not None and not self.crf_memory > 0:
            raise UsageError(
                f"crf-memory must be more than 0, not {self.crf_memory}", why="it is in gigabytes"
            )
        for name, value, least in (
            ("batch", self.batch, 0),
            ("max pixels", self.max_pixels, 1),
        ):
            if value is not None and value < least:
                raise UsageError(f"{name} must be at least {least}, not {value}")
        check_threads(self.threads)

    def resolved(self, card: ModelCard) -> LabelOptions:
        """With the card's recommendations in the place of None.

        Raises:
            UsageError: a background score for a model that does not compare with one.
        """
        advice = card.recommended
        if card.kind == "segmenter" and self.background is not None:
            raise UsageError(
                f"background {self.background} says nothing to a segmenter",
                why="it decides between background and classes itself",
                fix="leave out --background",
            )
        return replace(
            self,
            scales=tuple(advice.scales) if self.scales is None else self.scales,
            flip=advice.flip if self.flip is None else self.flip,
            background=advice.background if self.background is None else self.background,
        )
