"""Whether an engine does what the model does: its scores, maps and masks against a reference's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from wsss_rt import localize, segment
from wsss_rt.engines.base import EngineOutput
from wsss_rt.errors import WsssError
from wsss_rt.metrics.confusion import ConfusionMatrix
from wsss_rt.second_look import is_doubtful

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.model_card import ModelCard

Infer = Callable[["NDArray[np.float32]"], EngineOutput]

# the name of the reference among mIoUs
REFERENCE = "reference"
# keeps the ratio finite where a map is zero everywhere
_TINY = 1e-12


@dataclass(frozen=True)
class Limits:
    """What still counts as equal.

    Attributes:
        maps: largest error of an image's maps, over the largest value in them.
        scores: largest error of an image's logits, over the largest of them or 1.
        masks: fraction of all pixels whose class may differ.
        miou: what the mIoU may fall by, 0..1, where there is truth; None does not ask.
    """

    maps: float
    scores: float
    masks: float
    miou: float | None = None


# float16 keeps eleven bits of each weight, which moves maps a hundred times more than float32 rounding does;
# what a user gets is masks, and those must agree as well
LIMITS: Mapping[str, Limits] = {
    "float32": Limits(maps=1e-4, scores=1e-4, masks=1e-3),
    "float16": Limits(maps=5e-3, scores=5e-3, masks=1e-3),
    # eight bits, in every layer: what a mask may differ by is what the whole pipeline may
    "bfloat16": Limits(maps=1e-1, scores=1e-1, masks=5e-3),
    # its masks are those after the second look
    "mixed": Limits(maps=1e-1, scores=1e-1, masks=5e-3),
    # rounding to 256 steps moves single values of a map a lot and the masks little: these decide
    "int8": Limits(maps=5e-1, scores=5e-1, masks=2e-2, miou=1e-2),
    "int8+bfloat16": Limits(maps=5e-1, scores=5e-1, masks=2e-2, miou=1e-2),
}


@dataclass(frozen=True)
class ParityRow:
    """One output of one engine over all images.

    Attributes:
        engine: name and version.
        output: ``scores``, ``maps``, ``masks`` or ``miou``.
        worst: of the worst image; for masks the fraction of its pixels that differ; for mIoU how far it fell.
        mean: over all images and values.
        limit: for ``worst``; for masks, for ``mean``.
    """

    engine: str
    output: str
    worst: float
    mean: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the value is within the limit; NaN never is."""
        return (self.mean if self.output == "masks" else self.worst) <= self.limit


@dataclass(frozen=True)
class ParityReport:
    """What the gate found.

    Attributes:
        rows: per engine and output.
        images: how many were compared.
        source: what images, in words.
        missing: engines that could not take part, with the reason.
        against: what the reference was, in words.
        miou: by engine, and of the ``reference``, against the truth with the true classes as tags, 0..1;
            empty where there was no truth.
    """

    rows: tuple[ParityRow, ...]
    images: int
    source: str
    missing: Mapping[str, str]
    against: str = "float32 PyTorch"
    miou: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every row is within its limit."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """For the card and for JSON; errors to three digits."""
        engines: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            engines.setdefault(row.engine, {})[row.output] = {
                "worst": float(f"{row.worst:.3g}"),
                "mean": float(f"{row.mean:.3g}"),
                "limit": row.limit,
                "passed": row.passed,
            }
        found: dict[str, Any] = {
            "against": self.against,
            "images": self.images,
            "source": self.source,
            "passed": self.passed,
            "engines": engines,
            "missing": dict(self.missing),
        }
        if self.miou:
            found["miou"] = {name: round(value, 4) for name, value in self.miou.items()}
        return found

    def table(self) -> str:
        """The rows as text, for a terminal."""
        lines = [f"{'engine':24} {'output':8} {'worst':>10} {'mean':>10} {'limit':>10}  verdict"]
        lines += [
            f"{row.engine:24} {row.output:8} {row.worst:10.2e} {row.mean:10.2e} {row.limit:10.0e}  "
            f"{'PASS' if row.passed else 'FAIL'}{' (on the mean)' if row.output == 'masks' else ''}"
            for row in self.rows
        ]
        lines += [f"{name:24} {'mIoU':8} {100 * value:10.2f}" for name, value in self.miou.items()]
        lines += [f"{name:24} not checked: {reason}" for name, reason in self.missing.items()]
        return "\n".join(lines)


def failures(report: ParityReport) -> str:
    """What was not within its limit, in words; empty where all was."""
    return "; ".join(
        f"{row.engine}: {row.output} differ by {row.mean if row.output == 'masks' else row.worst:.2e}, "
        f"limit {row.limit:.0e}"
        for row in report.rows
        if not row.passed
    )


class ParityError(WsssError):
    """The compiled file does not do what the model does; nothing was written."""

    default_code = "parity_failed"

    def __init__(self, report: ParityReport) -> None:
        self.report = report
        super().__init__(
            "the exported graph failed the parity check, and nothing was written",
            why=failures(report) or "no engine could run it",
            fix="--weights float32 if it was float16; otherwise report it with the table above",
        )


class GateEngine(Protocol):
    """The part of an engine that the gate uses."""

    backend: str

    def infer(self, images: NDArray[np.float32]) -> EngineOutput:
        """See :class:`wsss_rt.engines.base.Engine`."""
        ...


def compare(
    reference: Infer,
    engines: Mapping[str, GateEngine],
    images: Sequence[NDArray[np.uint8]],
    *,
    card: ModelCard,
    limits: Limits,
    source: str,
    missing: Mapping[str, str] | None = None,
    against: str = "float32 PyTorch",
    truths: Sequence[NDArray[np.uint8] | None] = (),
) -> ParityReport:
    """Run the images through the model and each engine.

    Args:
        reference: the float32 model: (1, 3, H, W) to its output.
        engines: by the name that the report shows.
        images: (H, W, 3) uint8 RGB.
        card: input policy, thresholds and background with which masks are made.
        limits: what still counts as equal.
        source: what images these are, for the report.
        missing: engines that cannot take part, with the reason.
        against: what the reference is, for the report.
        truths: per image its true mask, values as in masks, 255 unknown, or None; empty for no image. With
            them, and a limit for it, the mIoU of masks with the true classes as tags is compared as well.
    """
    judged = {name: ConfusionMatrix(len(card.classes) + 1) for name in (REFERENCE, *engines)}
    found: dict[str, list[tuple[_Difference, _Difference, _Difference]]] = {name: [] for name in engines}
    for image, truth in zip_longest(images, truths):
        tensor = localize.prepare_passes(image, card.input, scales=(1.0,), flip=False)[0].images
        expected = reference(tensor)
        size = (image.shape[0], image.shape[1])
        present, background = _present(expected, card), float(card.recommended.background)
        mask = _mask(expected, present, size, card)
        tags = () if truth is None else _tags(truth, card)
        if truth is not None:
            judged[REFERENCE].update(_mask(expected, tags, size, card), truth)
        for name, engine in engines.items():
            got = engine.infer(tensor)
            exact = getattr(engine, "exact", None)
            if exact is not None and is_doubtful([got], present, card=card, background=background):
                got = exact.infer(tensor)
            scores = _difference(got.scores, expected.scores, max(1.0, float(np.abs(expected.scores).max())))
            maps = _difference(got.maps, expected.maps, max(_TINY, float(np.abs(expected.maps).max())))
            masks = _Difference(1.0, mask.size, mask.size)
            if got.maps.shape == expected.maps.shape and np.isfinite(got.maps).all():
                differing = int(np.count_nonzero(_mask(got, present, size, card) != mask))
                masks = _Difference(differing / mask.size, differing, mask.size)
                if truth is not None:
                    judged[name].update(_mask(got, tags, size, card), truth)
            found[name].append((scores, maps, masks))
    rows = []
    for name, triples in found.items():
        for output, limit, differences in zip(
            ("scores", "maps", "masks"),
            (limits.scores, limits.maps, limits.masks),
            zip(*triples, strict=True),
            strict=True,
        ):
            # numpy's maximum keeps NaN, which Python's would drop
            worst = float(np.max([difference.worst for difference in differences]))
            mean = sum(difference.total for difference in differences) / sum(
                difference.count for difference in differences
            )
            rows.append(ParityRow(name, output, worst, mean, limit))
    miou = {}
    if limits.miou is not None and any(truth is not None for truth in truths):
        miou = {name: matrix.miou() for name, matrix in judged.items()}
        for name in engines:
            fell = miou[REFERENCE] - miou[name]
            rows.append(ParityRow(name, "miou", fell, fell, limits.miou))
    return ParityReport(tuple(rows), len(images), source, dict(missing or {}), against, miou)


@dataclass(frozen=True)
class _Difference:
    worst: float
    total: float
    count: int


def _difference(got: NDArray[np.float32], expected: NDArray[np.float32], unit: float) -> _Difference:
    if got.shape != expected.shape:
        return _Difference(float("inf"), float("inf"), 1)
    error = np.abs(got.astype(np.float64) - expected) / unit
    return _Difference(float(error.max()), float(error.sum()), error.size)


def _present(output: EngineOutput, card: ModelCard) -> tuple[int, ...]:
    """The classes that compete in the mask: a segmenter's all; the predicted ones, and the two likeliest."""
    if card.kind == "segmenter":
        return tuple(range(len(card.classes)))
    probabilities = localize.tag_probabilities([output.scores])
    predicted = localize.predict_tags(probabilities, card.recommended.tag_thresholds)
    return tuple(sorted({*predicted, *(int(index) for index in np.argsort(-probabilities)[:2])}))


def _tags(truth: NDArray[np.uint8], card: ModelCard) -> tuple[int, ...]:
    """The classes that compete in a mask that truth judges: those in it; a segmenter's all."""
    if card.kind == "segmenter":
        return tuple(range(len(card.classes)))
    return tuple(int(value) - 1 for value in np.unique(truth) if 0 < value <= len(card.classes))


def _mask(
    output: EngineOutput, present: tuple[int, ...], size: tuple[int, int], card: ModelCard
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    background: float | NDArray[np.float32] = card.recommended.background
    if card.kind == "segmenter":
        merged = segment.merge_passes([output.maps], size=size)
        background, maps = segment.split_background(merged, has_background=card.has_background)
    else:
        maps = localize.merge_passes([output.maps], present, size=size, rule=card.maps)
    return localize.decide(maps, present, num_classes=len(card.classes), background=background).mask
