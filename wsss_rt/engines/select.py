"""Which engine runs a model: what was asked for, what is installed, and what a short trial measured."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from wsss_rt.engines import trial_cache
from wsss_rt.engines.runtime import default_threads
from wsss_rt.errors import UsageError, WsssError, nearest
from wsss_rt.model_card import ModelCard, read_artifact

if TYPE_CHECKING:
    from wsss_rt.engines.base import Engine

# in the order of preference where nothing was measured: the first one starts faster
BACKENDS = ("onnxruntime", "openvino")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "float32", "bfloat16", "int8")

# what people write, where the closest spelling would be the wrong guess
_SYNONYMS = {
    "gpu": "cuda",
    "ort": "onnxruntime",
    "ov": "openvino",
    "fp32": "float32",
    "f32": "float32",
    "bf16": "bfloat16",
}
_TRIAL_RUNS = 5
_TRIAL_SECONDS = 3.0
_DEFAULT_SIDE = 256


@dataclass(frozen=True)
class _Request:
    backend: str
    device: str
    precision: str
    threads: int
    card: ModelCard
    model: bytes
    read_seconds: float
    opened: dict[str, Engine] = field(default_factory=dict)


def open_engine(
    model: str | Path,
    *,
    backend: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    sample_shape: tuple[int, ...] | None = None,
    cache: bool = True,
    trial: bool = True,
) -> Engine:
    """Open an artifact with the backend asked for, or with the one that is faster here.

    Args:
        model: path of an artifact that ``wsss-rt export`` wrote.
        backend: ``auto``, ``onnxruntime`` or ``openvino``.
        device: ``auto``, ``cpu`` or ``cuda``; auto is cuda where ONNX Runtime can start it.
        precision: ``auto`` (the artifact's own: float32 or int8), ``float32``, ``int8``, or ``bfloat16``
            (OpenVINO only), which a quantised artifact has beside its int8.
        threads: processors for one image; by default all that the process may use.
        sample_shape: (B, 3, H, W) or (H, W) of a typical input, for the trial.
        cache: whether a trial's outcome is remembered in the user's cache folder.
        trial: False skips the trial, for a job too short to repay it: what an earlier trial found still
            counts, otherwise the first backend that opens is taken.

    Returns:
        The engine; its ``choice`` says what was asked for, measured and picked: ``requested``, ``candidates``
        (per backend its median in milliseconds, or why it cannot run), ``picked``, ``reason``, ``cached``;
        and ``seconds``: of reading the file, importing the library and building the engine.

    Raises:
        UsageError: an unknown name, or a backend, device or precision that is not to be had here.
        WsssError: no such model, a damaged one, or none of the backends can run it.
    """
    for value, choices, option in (
        (backend, ("auto", *BACKENDS), "backend"),
        (device, DEVICES, "device"),
        (precision, PRECISIONS, "precision"),
    ):
        if value not in choices:
            meant = _SYNONYMS.get(value.lower())
            hint = f"did you mean {meant!r}?" if meant in choices else nearest(value, choices)
            raise UsageError(f"no {option} {value!r}", fix=hint)
    if threads is not None and threads < 1:
        raise UsageError(f"--threads must be at least 1, not {threads}")
    started = time.perf_counter()
    card, data = read_artifact(Path(model))
    read_seconds = time.perf_counter() - started
    request = _Request(backend, device, precision, threads or default_threads(), card, data, read_seconds)
    shape = _trial_shape(sample_shape, card)
    names = _eligible(request)
    key = trial_cache.cache_key(card, request.threads, device, precision, shape)
    if len(names) == 1:
        return _only(request, names[0])
    if cache and (known := trial_cache.load(key)) is not None:
        try:
            engine = _open(request, known.picked)
        except WsssError:
            # what was measured no longer opens; the trial below says why
            pass
        else:
            return _choose(
                request, engine, known.candidates, "measured faster in an earlier trial", cached=True
            )
    if not trial:
        return _first(request, names)
    return _by_trial(request, names, shape, key if cache else None)


def _eligible(request: _Request) -> tuple[str, ...]:
    """The backends that could serve the request, before anything is imported."""
    names = BACKENDS if request.backend == "auto" else (request.backend,)
    _check_stored(request)
    if request.precision == "bfloat16":
        if request.device == "cuda" or "openvino" not in names:
            raise UsageError(
                "bfloat16 runs in OpenVINO on the CPU only",
                fix="drop --precision, or use --backend openvino --device cpu",
            )
        return ("openvino",)
    if request.device == "cuda":
        if "onnxruntime" not in names:
            raise UsageError("OpenVINO does not run on cuda", fix="use --backend onnxruntime or --device cpu")
        return ("onnxruntime",)
    return names


def _check_stored(request: _Request) -> None:
    """Refuse int8 of a model that was not quantised, and float32 of one that was."""
    stored = request.card.precision
    if request.precision == "int8" and stored != "int8":
        raise UsageError(
            f"this model computes in {stored}, not in int8",
            fix="quantise it first: wsss-rt export MODEL.onnx --precision int8 --calibrate DIR --out FILE",
        )
    if request.precision == "float32" and stored == "int8":
        raise UsageError(
            "this model is quantised to int8 and has no float32",
            fix="drop --precision, or give the model that it was made from",
        )


def _open(request: _Request, name: str) -> Engine:
    """Open one backend, once.

    Raises:
        UsageError: its package is missing or broken, or the device is not there.
        WsssError: it refuses the model.
    """
    if name in request.opened:
        return request.opened[name]
    if importlib.util.find_spec(name) is None:
        raise UsageError(
            f"the backend {name} is not installed", fix=f"pip install {name}", code="backend_missing"
        )
    started = time.perf_counter()
    try:
        importlib.import_module(name)
        imported = time.perf_counter()
        engine = _openers()[name](request)
    except ImportError as error:
        raise UsageError(
            f"the backend {name} is installed and cannot be imported",
            why=" ".join(str(error).split())[:300],
            fix=f"pip install --force-reinstall {name}; see `wsss-rt doctor`",
            code="backend_broken",
        ) from error
    spent = {
        "read": request.read_seconds,
        "import": imported - started,
        "build": time.perf_counter() - imported,
    }
    engine.choice["seconds"] = {stage: round(value, 4) for stage, value in spent.items()}
    request.opened[name] = engine
    return engine


def _openers() -> dict[str, Callable[[_Request], Engine]]:
    return {"onnxruntime": _open_onnxruntime, "openvino": _open_openvino}


def _open_onnxruntime(request: _Request) -> Engine:
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


def _open_openvino(request: _Request) -> Engine:
    from wsss_rt.engines.openvino import OpenVinoEngine

    precision = "bfloat16" if request.precision == "bfloat16" else "float32"
    return OpenVinoEngine(request.card, request.model, precision=precision, threads=request.threads)


def _only(request: _Request, name: str) -> Engine:
    engine = _open(request, name)
    asked = {"backend": request.backend, "device": request.device, "precision": request.precision}
    reason = "asked for: " + ", ".join(f"{key} {value}" for key, value in asked.items() if value != "auto")
    return _choose(request, engine, {name: "not measured"}, reason)


def _first(request: _Request, names: tuple[str, ...]) -> Engine:
    candidates: dict[str, float | str] = dict.fromkeys(names, "not measured")
    for name in names:
        try:
            engine = _open(request, name)
        except WsssError as error:
            candidates[name] = str(error)
        else:
            return _choose(request, engine, candidates, "starts fastest; the job is too short for a trial")
    raise _none_runs(candidates)


def _by_trial(
    request: _Request, names: tuple[str, ...], shape: tuple[int, ...], key: dict[str, Any] | None
) -> Engine:
    candidates: dict[str, float | str] = {}
    engines: dict[str, Engine] = {}
    for name in names:
        try:
            engines[name] = _open(request, name)
        except WsssError as error:
            candidates[name] = str(error)
    times = _measure(engines, shape, candidates)
    candidates |= {name: round(1000 * median(seconds), 3) for name, seconds in times.items()}
    if not times:
        raise _none_runs(candidates)
    picked = min(times, key=lambda name: median(times[name]))
    for name, engine in engines.items():
        if name != picked:
            engine.close()
    if len(times) == 1:
        reason = "the only one that runs here"
    else:
        reason = f"fastest in a trial on {'x'.join(map(str, shape))}"
    if key is not None and len(times) == len(names):
        trial_cache.store(key, picked, candidates)
    return _choose(request, engines[picked], candidates, reason)


def _measure(
    engines: dict[str, Engine], shape: tuple[int, ...], candidates: dict[str, float | str]
) -> dict[str, list[float]]:
    """Seconds of each run; an engine that fails goes to ``candidates`` with its reason."""
    import numpy as np

    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    times: dict[str, list[float]] = {}
    for name, engine in engines.items():
        try:
            engine.infer(images)
            times[name] = []
        except WsssError as error:
            candidates[name] = str(error)
    started = time.perf_counter()
    # in turns, so that a neighbour's burst of load falls on all of them
    for turn in range(_TRIAL_RUNS if len(times) > 1 else 1):
        if turn and time.perf_counter() - started > _TRIAL_SECONDS:
            break
        for name in list(times):
            start = time.perf_counter()
            try:
                engines[name].infer(images)
            except WsssError as error:
                candidates[name] = str(error)
                del times[name]
            else:
                times[name].append(time.perf_counter() - start)
    return times


def _choose(
    request: _Request,
    engine: Engine,
    candidates: dict[str, float | str],
    reason: str,
    *,
    cached: bool = False,
) -> Engine:
    engine.choice |= {
        "requested": request.backend,
        "candidates": candidates,
        "picked": engine.backend,
        "reason": reason,
        "cached": cached,
        "threads": request.threads,
    }
    return engine


def _none_runs(candidates: dict[str, float | str]) -> WsssError:
    return WsssError(
        "no backend can run the model",
        why="; ".join(f"{name}: {reason}" for name, reason in candidates.items()),
        fix="see `wsss-rt doctor`",
        code="no_backend",
    )


def _trial_shape(sample: tuple[int, ...] | None, card: ModelCard) -> tuple[int, int, int, int]:
    if sample is not None and len(sample) == 4:
        return (sample[0], 3, sample[2], sample[3])
    if sample is not None and len(sample) == 2:
        return (1, 3, sample[0], sample[1])
    if sample is not None:
        raise ValueError(f"sample_shape must be (B, 3, H, W) or (H, W), not {sample}")
    side = card.input.size or _DEFAULT_SIDE
    return (1, 3, side, side)
