"""Which engine runs a model: what was asked for, what is installed, and what a short trial measured."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from wsss_rt.engines import first_use, trial_cache
from wsss_rt.engines.backends import BACKENDS, DEVICES, PRECISIONS, TRAITS, check_names, eligible
from wsss_rt.engines.openers import OPENERS, Request
from wsss_rt.engines.runtime import check_threads, default_threads
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.model_card import ModelCard, is_package, read_artifact

if TYPE_CHECKING:
    from wsss_rt.engines.base import Engine
    from wsss_rt.gate_images import GateImages

__all__ = ["BACKENDS", "DEVICES", "PRECISIONS", "open_engine"]

Tell = Callable[[str], None]

_TRIAL_RUNS = 5
_TRIAL_SECONDS = 3.0
_DEFAULT_SIDE = 256


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
    gate: bool = True,
    images: Callable[[], GateImages] | None = None,
    tell: Tell | None = None,
) -> Engine:
    """Open an artifact with the backend asked for, or with the one that is faster here.

    Args:
        model: path of an artifact that ``wsss-rt export`` wrote.
        backend: ``auto``, or one of :data:`BACKENDS`.
        device: ``auto``, ``cpu`` or ``cuda``; auto is cuda where a backend can start it.
        precision: ``auto``, or one of :data:`PRECISIONS`; auto is what the artifact was made for.
        threads: processors for one image; by default all that the process may use.
        sample_shape: (B, 3, H, W) of a typical call, for the trial, or (H, W) of an image, which labelling
            sends with its mirror image.
        cache: whether a trial's outcome is remembered in the user's cache folder.
        trial: False skips the trial, for a job too short to repay it: what an earlier trial found still
            counts, otherwise the first backend that opens is taken.
        gate: False skips the parity gate of engines that export did not check, for a caller who checks.
        images: for that gate, called where it has to run; generated scenes by default.
        tell: gets a line of whatever takes long or went another way than asked; a log warning by default.

    Returns:
        The engine; its ``choice`` says what was asked for, measured and picked: ``requested``, ``candidates``
        (per backend its median in milliseconds, or why it cannot run), ``picked``, ``reason``, ``cached``,
        ``precision``; ``parity``, where the gate ran; and ``seconds``: of reading the file, importing the
        library and building the engine.

    Raises:
        UsageError: an unknown name, or a backend, device or precision that is not to be had here.
        WsssError: no such model, a damaged one, or none of the backends can run it; code ``parity_failed``
            where the engine that was asked for does not do what the model does.
    """
    check_names(backend, device, precision)
    check_threads(threads)
    started = time.perf_counter()
    path = Path(model)
    card, data = read_artifact(path)
    request = Request(
        backend,
        device,
        precision,
        threads or default_threads(),
        path,
        card,
        data,
        time.perf_counter() - started,
        images or _scenes,
        tell or logging.getLogger("wsss_rt").warning,
        gate,
        cache,
    )
    shape = _trial_shape(sample_shape, card)
    names = eligible(backend, device, precision, card, package=is_package(data))
    key = trial_cache.cache_key(card, request.threads, device, precision, shape)
    if len(names) == 1:
        return _only(request, names[0])
    if cache and (known := trial_cache.load(key)) is not None and known.picked in names:
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


def _scenes() -> GateImages:
    from wsss_rt.gate_images import gate_images

    return gate_images(None)


def _open(request: Request, name: str) -> Engine:
    """Open one backend, once.

    Raises:
        UsageError: its package is missing or broken, or the device is not there.
        WsssError: it refuses the model, or the parity gate refuses it.
    """
    if name in request.opened:
        return request.opened[name]
    traits = TRAITS[name]
    if not traits.installed:
        install = f"pip install {traits.install}"
        raise UsageError(f"the backend {name} is not installed", fix=install, code="backend_missing")
    started = time.perf_counter()
    try:
        importlib.import_module(traits.module)
        imported = time.perf_counter()
        engine = OPENERS[name](request)
    except ImportError as error:
        raise UsageError(
            f"the backend {name} is installed and cannot be imported",
            why=" ".join(str(error).split())[:300],
            fix=f"pip install --force-reinstall {traits.module}; see `wsss-rt doctor`",
            code="backend_broken",
        ) from error
    spent = {
        "read": request.read_seconds,
        "import": imported - started,
        "build": time.perf_counter() - imported,
    }
    engine.choice["seconds"] = {stage: round(value, 4) for stage, value in spent.items()}
    if not request.gate and not first_use.was_gated(engine):
        engine.choice["parity"] = "skipped"
    elif not first_use.was_gated(engine):
        first_use.gate(engine, request.reference, request.images, cache=request.cache, tell=request.tell)
    request.opened[name] = engine
    return engine


def _only(request: Request, name: str) -> Engine:
    engine = _open(request, name)
    asked = {"backend": request.backend, "device": request.device, "precision": request.precision}
    given = ", ".join(f"{key} {value}" for key, value in asked.items() if value != "auto")
    reason = f"asked for: {given}" if given else "the only backend for this model here"
    return _choose(request, engine, {name: "not measured"}, reason)


def _first(request: Request, names: tuple[str, ...]) -> Engine:
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
    request: Request, names: tuple[str, ...], shape: tuple[int, ...], key: dict[str, Any] | None
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
    request: Request,
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
        "precision": engine.precision,
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
    # labelling sends an image and its mirror image, and engines differ in how well they run two
    rows = 1 if card.kind == "affinity" else 2
    if sample is not None and len(sample) == 2:
        return (rows, 3, sample[0], sample[1])
    if sample is not None:
        raise ValueError(f"sample_shape must be (B, 3, H, W) or (H, W), not {sample}")
    side = card.input.size or _DEFAULT_SIDE
    return (rows, 3, side, side)
