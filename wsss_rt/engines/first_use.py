"""The parity gate before an engine's first use on a machine; its result is remembered beside the trials'.

Export holds every engine of its machine against PyTorch, in float32 on the CPU. What computes otherwise, in
lower precisions or on GPUs, meets the model for the first time here, beside float32 ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

from wsss_rt import __version__
from wsss_rt.engines import trial_cache
from wsss_rt.engines.processor import gpu_names, processor_name
from wsss_rt.engines.windows import windowed
from wsss_rt.errors import WsssError

if TYPE_CHECKING:
    from wsss_rt.engines.base import Engine
    from wsss_rt.gate_images import GateImages
    from wsss_rt.model_card import ModelCard
    from wsss_rt.parity import ParityReport

AGAINST = "float32 ONNX Runtime"


def was_gated(engine: Engine) -> bool:
    """Whether export has held this very computation against PyTorch, or nothing else could."""
    return (
        (engine.precision == "float32" and engine.device == "cpu")
        or engine.backend == "aotinductor"
        or engine.card.precision == "int8"
        # compiled engines bring the result that was found when they were built
        or "parity" in engine.choice
    )


def gate(
    engine: Engine,
    reference: Callable[[], Engine],
    images: Callable[[], GateImages],
    *,
    cache: bool,
    tell: Callable[[str], None],
) -> None:
    """Hold an engine against float32 ONNX Runtime, unless that was done before; sets ``choice["parity"]``.

    Args:
        engine: that is to be used for the first time.
        reference: opens float32 ONNX Runtime on the CPU; only called where something is to be compared.
        images: to compare on; likewise.
        cache: whether the result is remembered, and an earlier one believed.
        tell: gets a line before the comparison.

    Raises:
        WsssError: code ``parity_failed``, now or in an earlier run on this machine.
    """
    from wsss_rt.parity import LIMITS

    limits = LIMITS[engine.precision]
    key = {
        "parity": AGAINST,
        "wsss_rt": __version__,
        "model": engine.card.weights_sha256,
        "backend": engine.backend,
        "library": _version(engine.backend),
        "device": engine.device if engine.device == "cpu" else [engine.device, *gpu_names()],
        "processor": processor_name(),
        "precision": engine.precision,
        # the same graph, another computation
        "attention": engine.choice.get("attention"),
        "limits": asdict(limits),
    }
    found = trial_cache.load_parity(key) if cache else None
    earlier = found is not None
    if found is None:
        chosen = images()
        tell(
            f"first use of {engine.backend} {engine.precision} for this model here: "
            f"comparing it with {AGAINST} on {chosen.source}"
        )
        exact = reference()
        try:
            found = parity_result(compare_engines(exact, engine, chosen))
        finally:
            exact.close()
        if cache:
            trial_cache.store_parity(key, found)
    engine.choice["parity"] = found
    if not found["passed"]:
        raise WsssError(
            f"{engine.backend} in {engine.precision} does not do what the model does here",
            why=f"{found.get('summary', '')}, on {found.get('source', 'images')}"
            + (", in an earlier run here" if earlier else ""),
            fix="drop --precision, choose another --backend, or accept the difference with --skip-parity",
            code="parity_failed",
        )


def compare_engines(reference: Engine, engine: Engine, images: GateImages) -> ParityReport:
    """The gate itself, for models of any kind.

    Args:
        reference: float32.
        engine: judged by the limits of its precision.
        images: what to compare on.
    """
    from wsss_rt.parity import LIMITS, compare
    from wsss_rt.parity_affinity import compare_affinity

    card: ModelCard = engine.card
    limits = LIMITS[engine.precision]
    engines = {f"{engine.backend} {engine.precision}": engine}
    if card.kind == "affinity":
        report = compare_affinity(
            lambda tensor: reference.run(tensor)[0],
            engines,
            images.images,
            card=card,
            limit=limits.maps,
            source=images.source,
        )
        return replace(report, against=AGAINST)
    return compare(
        windowed(reference).infer,
        {name: windowed(value) for name, value in engines.items()},
        images.images,
        card=card,
        limits=limits,
        source=images.source,
        against=AGAINST,
    )


def parity_result(report: ParityReport) -> dict[str, Any]:
    """A report for a cache or run.json, with a ``summary`` of what failed: also what ``obtain`` wants."""
    from wsss_rt.parity import failures

    found: Mapping[str, Any] = report.as_dict()
    return {**found, "summary": failures(report)}


def _version(package: str) -> str | None:
    for name in (package, f"{package}-gpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            # onnxruntime is the import name of several distributions
            continue
    return None
