"""How each backend is opened on an artifact that was read and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wsss_rt.errors import UsageError, WsssError
from wsss_rt.io.names import printable
from wsss_rt.model_card import ModelCard

if TYPE_CHECKING:
    from wsss_rt.engines.base import Engine
    from wsss_rt.gate_images import GateImages


@dataclass(frozen=True)
class Request:
    """What was asked for, and what an opener needs of it.

    Attributes:
        path, card, model: the artifact, and the bytes that were checked.
        images: for the parity gate.
        tell: gets a line of whatever takes long or went another way than asked.
        gate: whether an engine meets the parity gate before its first use.
    """

    backend: str
    device: str
    precision: str
    threads: int
    path: Path
    card: ModelCard
    model: bytes
    read_seconds: float
    images: Callable[[], GateImages]
    tell: Callable[[str], None]
    gate: bool
    cache: bool
    opened: dict[str, Engine] = field(default_factory=dict)

    def reference(self) -> Engine:
        """Float32 ONNX Runtime on the CPU, which every other engine is held against."""
        try:
            from wsss_rt.engines.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine(self.card, self.model, threads=self.threads)
        except ImportError as error:
            raise WsssError(
                "the parity check needs ONNX Runtime", why=str(error), fix="pip install onnxruntime"
            ) from error


def _open_onnxruntime(request: Request) -> Engine:
    from wsss_rt.engines.onnxruntime import CudaUnavailable, OnnxRuntimeEngine, cuda_offered

    make = OnnxRuntimeEngine
    if request.device == "cpu" or (request.device == "auto" and not cuda_offered()):
        return make(request.card, request.model, threads=request.threads)
    try:
        return make(request.card, request.model, device="cuda", threads=request.threads)
    except CudaUnavailable as error:
        if request.device == "cuda":
            raise UsageError(error.what, why=error.why, fix=error.fix, code=error.code) from error
        engine = make(request.card, request.model, threads=request.threads)
        engine.choice["cuda"] = str(error)
        return engine


def _open_openvino(request: Request) -> Engine:
    from wsss_rt.engines.openvino import OpenVinoEngine

    if request.precision == "mixed":
        from wsss_rt.engines.mixed import MixedEngine

        fast, exact = (
            OpenVinoEngine(
                request.card,
                request.model,
                precision=precision,
                threads=request.threads,
                tell=request.tell,
            )
            for precision in ("bfloat16", "float32")
        )
        return MixedEngine(fast, exact)
    # a quantised artifact says itself what runs in eight bits; the rest of it is float32
    precision = "bfloat16" if request.precision == "bfloat16" else "float32"
    return OpenVinoEngine(
        request.card, request.model, precision=precision, threads=request.threads, tell=request.tell
    )


def _open_tensorrt(request: Request) -> Engine:
    from wsss_rt.engines.tensorrt_plan import open_planned

    return open_planned(
        request.card,
        request.model,
        precision=request.precision,
        reference=request.reference,
        images=request.images,
        tell=request.tell,
        gate=request.gate,
    )


def _open_aotinductor(request: Request) -> Engine:
    from wsss_rt.engines.aotinductor import AotInductorEngine
    from wsss_rt.engines.private_folder import refuse_unsafe_code
    from wsss_rt.model_package import read_package

    refuse_unsafe_code(request.path)
    name = printable(request.path)
    card, built_for = read_package(request.model, name)
    engine = AotInductorEngine(
        card, request.model, built_for, device=request.device, threads=request.threads, source=name
    )
    parity = card.quality.get("parity")
    engine.choice["parity"] = parity if isinstance(parity, dict) else "skipped at export"
    return engine


OPENERS: Mapping[str, Callable[[Request], Engine]] = {
    "onnxruntime": _open_onnxruntime,
    "openvino": _open_openvino,
    "tensorrt": _open_tensorrt,
    "aotinductor": _open_aotinductor,
}
