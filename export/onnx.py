"""A trained model to one ONNX file with its card, written only after the parity gate."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wsss_rt.classes import ClassSet
from wsss_rt.engines.base import EngineOutput
from wsss_rt.errors import WsssError
from wsss_rt.export.graph import OPSET, Weights, build_graph, embedded_paths, outputs_of
from wsss_rt.gate_images import gate_images
from wsss_rt.io.atomic import write_atomic
from wsss_rt.model_card import Kind, MapRule, ModelCard, seal
from wsss_rt.parity import LIMITS, ParityError, ParityReport, compare
from wsss_rt.parity_affinity import compare_affinity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsss_rt.engines.base import Engine
    from wsss_rt.training.checkpoints import RunConfig


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the artifact.
        size: bytes.
        opset: of the graph; None of a package of compiled code.
        seconds: for all of it, and of that for the gate.
        gate_seconds: see ``seconds``.
        card: as sealed, but for the hash of the weights.
        parity: what the gate found; None where it was skipped.
    """

    path: Path
    size: int
    opset: int | None
    seconds: float
    gate_seconds: float
    card: ModelCard
    parity: ParityReport | None


def export_onnx(
    model: nn.Module,
    config: RunConfig,
    out: str | Path,
    *,
    images: Path | None = None,
    weights: Weights = "float32",
    gate: bool = True,
) -> ExportReport:
    """Compile a localizer or a segmenter to an artifact.

    Args:
        model: as ``load_run`` gives it; its ``forward`` returns scores and maps.
        config: what the card will say.
        out: the file; nothing appears under this name unless the gate passes.
        images: folder with images for the gate; None generates scenes.
        weights: how matrices are stored; float16 halves the file.
        gate: False skips the parity check, and the card says so.

    Raises:
        ParityError: an engine's result is not the model's; nothing was written.
        WsssError: the model cannot be traced, or the file cannot be written.
    """
    started = time.perf_counter()
    model = model.eval().float().cpu()
    card = make_card(model, config, weights=weights)
    graph = build_graph(model, patch=card.input.patch, weights=weights)
    # the folders of this machine have no business in a file that is handed on
    found = embedded_paths(graph, (os.path.expanduser("~/"), os.getcwd() + "/", "site-packages"))
    if found:
        raise WsssError(f"the exported graph mentions {', '.join(found)}", code="export_failed")
    gate_started = time.perf_counter()
    parity = None
    if gate:
        parity = _gate(model, graph, card, images, weights)
        if not parity.passed:
            raise ParityError(parity)
    gate_seconds = time.perf_counter() - gate_started
    result: Any = parity.as_dict() if parity is not None else "skipped"
    card = replace(card, quality={**card.quality, "parity": result})
    data = seal(graph, card)
    write_atomic(out, data)
    return ExportReport(
        Path(out), len(data), OPSET, time.perf_counter() - started, gate_seconds, card, parity
    )


def make_card(model: nn.Module, config: RunConfig, *, weights: Weights = "float32") -> ModelCard:
    """The card of a model that was trained or loaded with this config."""
    options = {**config.model, **config.recommended_options, "weights": weights}
    # where weights were started from is part of `training`, and no option of the graph
    options.pop("pretrained", None)
    kind: Kind = getattr(model, "kind", "localizer")
    # whatever an affinity net was trained on, it knows no classes
    classes = None if kind == "affinity" else ClassSet(tuple(config.classes))
    return ModelCard(
        method=config.method,
        kind=kind,
        classes=() if classes is None else classes.names,
        colors=() if classes is None else tuple(classes.color(index) for index in range(len(classes))),
        input=replace(config.input, patch=int(getattr(model, "patch_size", config.input.patch))),
        outputs=outputs_of(model),
        recommended=config.recommended,
        maps=getattr(model, "map_rule", MapRule()),
        precision="float32",
        options=_without_folders(options),
        training=_without_folders(config.training),
        quality=_without_folders(config.quality),
        has_background=bool(getattr(model, "background", False)),
    )


def _gate(
    model: nn.Module, graph: bytes, card: ModelCard, folder: Path | None, weights: Weights
) -> ParityReport:
    engines, missing = _open_engines(seal(graph, card), card)
    return gate_against(model, engines, missing, card, folder, weights)


def gate_against(
    model: nn.Module,
    engines: Mapping[str, Any],
    missing: Mapping[str, str],
    card: ModelCard,
    folder: Path | None,
    precision: str,
) -> ParityReport:
    """Hold engines against the float32 model, on the CPU.

    Args:
        model: in eval mode.
        engines: with ``run`` and ``infer`` as :class:`wsss_rt.engines.base.Engine`, by the name to show.
        missing: engines that could not take part, with the reason.
        card: of the artifact that they run.
        folder: images; None generates scenes.
        precision: whose limits hold, a key of :data:`wsss_rt.parity.LIMITS`.
    """
    chosen = gate_images(folder)
    if card.kind == "affinity":

        def affinity(tensor: NDArray[np.float32]) -> NDArray[np.float32]:
            with torch.inference_mode():
                planes: NDArray[np.float32] = model(torch.from_numpy(tensor)).numpy()
            return planes

        return compare_affinity(
            affinity,
            engines,
            chosen.images,
            card=card,
            limit=LIMITS[precision].maps,
            source=chosen.source,
            missing=missing,
        )

    def reference(tensor: NDArray[np.float32]) -> EngineOutput:
        with torch.inference_mode():
            scores, maps = model(torch.from_numpy(tensor))
        return EngineOutput(scores.numpy(), maps.numpy())

    return compare(
        reference,
        engines,
        chosen.images,
        card=card,
        limits=LIMITS[precision],
        source=chosen.source,
        missing=missing,
    )


def _open_engines(artifact: bytes, card: ModelCard) -> tuple[dict[str, Engine], dict[str, str]]:
    """Every installed engine on the very bytes that are to be written, and why the others are missing."""
    from wsss_rt.engines.onnxruntime import OnnxRuntimeEngine
    from wsss_rt.engines.openvino import OpenVinoEngine

    engines: dict[str, Engine] = {}
    missing: dict[str, str] = {}
    for kind in (OnnxRuntimeEngine, OpenVinoEngine):
        try:
            engines[f"{kind.backend} {_version(kind.backend)}"] = kind(card, artifact)
        except ImportError as error:
            missing[kind.backend] = str(error)
    return engines, missing


def _version(package: str) -> str:
    for name in (package, f"{package}-gpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            # onnxruntime is the import name of several distributions
            continue
    return "of unknown version"


def _without_folders(value: Any) -> Any:
    """The value with absolute paths cut to their last part; a card travels, this machine's folders do not."""
    if isinstance(value, Mapping):
        return {str(key): _without_folders(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_folders(entry) for entry in value]
    if isinstance(value, Path) or (isinstance(value, str) and os.path.isabs(value)):
        return Path(value).name
    return value
