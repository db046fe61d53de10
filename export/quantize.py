"""A float32 artifact to int8: calibrated on images, written only if its masks stay as good as they were."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_rt.engines.base import EngineOutput
from wsss_rt.engines.onnxruntime import OnnxRuntimeEngine
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.export.calibration_images import SCENES, calibration_images
from wsss_rt.export.engines import open_engines
from wsss_rt.export.layer_errors import SHARE_OF_LIMIT, LayerError, LayerSearch
from wsss_rt.export.quantized_graph import METHODS, QuantizableGraph
from wsss_rt.io.atomic import write_atomic
from wsss_rt.localize import prepare_passes
from wsss_rt.model_card import KINDS, ModelCard, read_artifact, seal
from wsss_rt.parity import LIMITS, ParityReport, compare

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AGAINST = "float32 ONNX Runtime"
# images of the calibration that layers are measured on
SEARCHED = 8
# layers that a refusal names
_NAMED = 5


@dataclass(frozen=True)
class QuantizeReport:
    """What was written.

    Attributes:
        path: the artifact.
        size: bytes.
        seconds: for all of it.
        card: as sealed, but for the hash of the weights.
        parity: what the gate found; None where it was skipped.
        quantized: how many layers run in int8.
        in_float: those that do not.
        errors: of the layers one by one, the worst first; empty where all of them fitted at once.
    """

    path: Path
    size: int
    seconds: float
    card: ModelCard
    parity: ParityReport | None
    quantized: int
    in_float: tuple[str, ...]
    errors: tuple[LayerError, ...]


class QualityError(WsssError):
    """The quantised model's masks are worse than allowed; nothing was written."""

    default_code = "quality_failed"

    def __init__(self, report: ParityReport, errors: tuple[LayerError, ...]) -> None:
        self.report, self.errors = report, errors
        failed = "; ".join(
            f"{row.engine}: {'mIoU falls' if row.output == 'miou' else f'{row.output} differ'} by "
            f"{row.mean if row.output == 'masks' else row.worst:.2e}, limit {row.limit:.0e}"
            for row in report.rows
            if not row.passed
        )
        failed = failed or "no layer fits into the budget"
        worst = ", ".join(f"{found.layer} {100 * found.masks:.2f} %" for found in errors[:_NAMED])
        super().__init__(
            "the quantised model failed the quality gate, and nothing was written",
            why=f"{failed}. Pixels that the worst layers change alone: {worst}",
            fix="calibrate with images of the kind that will be labelled, or stay with float32 or bfloat16",
        )


def quantize(
    model: Path,
    out: str | Path,
    *,
    calibrate: str = SCENES,
    truth: Path | None = None,
    gate: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> QuantizeReport:
    """Quantise an artifact's layers to int8, but for those that harm its masks.

    Args:
        model: a float32 artifact of a localizer or a segmenter.
        out: the file; nothing appears under this name unless the gate passes.
        calibrate: folder of images, or ``scenes``.
        truth: folder of masks with the images' names, to judge by mIoU as well.
        gate: False skips the gate and the search, and the card says so.
        tell: gets a line before each step.

    Raises:
        QualityError: masks differ too much from those of float32, or their mIoU fell too far.
        UsageError: an artifact that cannot be quantised, or too few images.
        WsssError: the model cannot be read, or the file cannot be written.
    """
    started = time.perf_counter()
    card, data = read_artifact(model)
    if card.precision != "float32" or card.kind not in KINDS:
        raise UsageError(
            f"{model} cannot be quantised",
            why=f"it is a {card.kind} in {card.precision}",
            fix="int8 is made from a float32 localizer or segmenter",
        )
    if card.input.window is not None:
        raise UsageError(
            f"{model} cannot be quantised", why="it slides a window, which the gate does not do yet"
        )
    chosen = calibration_images(calibrate, truth, card)
    graph = QuantizableGraph(data)
    if not graph.layers:
        raise UsageError(f"{model} cannot be quantised", why="it has no product or convolution with weights")
    tensors = [_tensor(image, card) for image in chosen.calibrating]
    reference = _Remembering(OnnxRuntimeEngine(card, data))
    search = LayerSearch(graph, card, reference.infer, chosen.calibrating[:SEARCHED])
    if gate:
        method = _calibrate(graph, search, tensors, tell)
    else:
        method = METHODS[0]
        graph.calibrate(tensors, method=method)
    layers, errors = list(graph.layers), list[LayerError]()
    if gate and search.error(layers)[0] > SHARE_OF_LIMIT * LIMITS["int8"].masks:
        errors = search.each(tell)
        layers = search.choose(errors, tell)
    quantised = graph.quantized(layers)
    in_float = tuple(str(layer) for layer in graph.layers if layer not in layers)
    card8 = _card(card, chosen.source, calibrate, method, len(layers), in_float)
    parity = None
    if gate:
        tell("comparing masks with those of float32")
        engines, missing = open_engines(seal(quantised, card8), card8)
        parity = compare(
            reference.infer,
            engines,
            chosen.judging,
            card=card8,
            limits=LIMITS["int8"],
            source=chosen.source,
            missing=missing,
            against=AGAINST,
            truths=chosen.truths,
        )
        if not layers or not parity.passed:
            errors = errors or search.each(tell)
            raise QualityError(parity, tuple(reversed(errors)))
    result: Any = "skipped" if parity is None else parity.as_dict()
    card8 = replace(card8, quality={**card8.quality, "int8": result})
    sealed = seal(quantised, card8)
    write_atomic(out, sealed)
    return QuantizeReport(
        Path(out),
        len(sealed),
        time.perf_counter() - started,
        card8,
        parity,
        len(layers),
        in_float,
        tuple(reversed(errors)),
    )


def _calibrate(
    graph: QuantizableGraph,
    search: LayerSearch,
    tensors: list[NDArray[np.float32]],
    tell: Callable[[str], None],
) -> str:
    """Calibrate by the method with which all layers together change the fewest pixels."""
    found = {}
    for method in METHODS:
        tell(f"calibrating by {method} on {len(tensors)} images")
        graph.calibrate(tensors, method=method)
        found[method] = search.error(graph.layers)
        tell(f"all {len(graph.layers)} layers in int8 change {100 * found[method][0]:.2f} % of the pixels")
    best = min(found, key=lambda method: found[method])
    graph.use(best)
    return best


def _card(
    card: ModelCard, source: str, calibrate: str, method: str, quantized: int, in_float: tuple[str, ...]
) -> ModelCard:
    made: dict[str, Any] = {
        "from": card.weights_sha256,
        "calibration": f"{source}, ranges by {method}",
        "images": SCENES if calibrate == SCENES else "given",
        "layers": quantized,
        "in_float": list(in_float),
    }
    return replace(card, precision="int8", options={**card.options, "quantized": made})


def _tensor(image: NDArray[np.uint8], card: ModelCard) -> NDArray[np.float32]:
    return prepare_passes(image, card.input, scales=(1.0,), flip=False)[0].images


class _Remembering:
    """The float32 engine, which is asked for the same few images again and again.

    Args:
        engine: float32.
    """

    def __init__(self, engine: OnnxRuntimeEngine) -> None:
        self._engine = engine
        self._known: dict[bytes, EngineOutput] = {}

    def infer(self, images: NDArray[np.float32]) -> EngineOutput:
        """Run, or remember."""
        import hashlib

        key = hashlib.sha256(images.tobytes()).digest()
        if key not in self._known:
            self._known[key] = self._engine.infer(images)
        return self._known[key]
