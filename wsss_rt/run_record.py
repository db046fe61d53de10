"""run.json: what ran, on what, with which result; and whether a later run may go on with it."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_rt import __version__
from wsss_rt.errors import ImageError, UsageError, WsssError
from wsss_rt.io.atomic import write_atomic
from wsss_rt.io.decode import read_bytes
from wsss_rt.io.manifest import config_hash
from wsss_rt.model_card import MapRule, read_card
from wsss_rt.refine import refiner_names

if TYPE_CHECKING:
    from wsss_rt.engines.base import Engine
    from wsss_rt.model_card import ModelCard
    from wsss_rt.options import LabelOptions

RUN_NAME = "run.json"
SCHEMA_VERSION = 1
PACKAGES = ("numpy", "pillow", "opencv-python-headless", "onnxruntime", "openvino", "pycocotools", "numba")

# what decides a mask's bytes; limits, thread counts and output formats don't
ENGINE_KEYS = ("backend", "device", "precision")


def identity(
    card: ModelCard, options: LabelOptions, *, tags: str, engine: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that two runs must share for their masks to belong together.

    Args:
        card: of the model.
        options: resolved against the card.
        tags: ``given``, ``folders`` or ``predicted``.
        engine: ``backend``, ``device`` and ``precision``.
    """
    return {
        "wsss_rt": __version__,
        "model": card.weights_sha256,
        "scales": list(options.scales or ()),
        "flip": options.flip,
        "background": options.background,
        "tag_thresholds": list(card.recommended.tag_thresholds) if tags == "predicted" else [],
        "ignore_band": None if options.ignore_band is None else list(options.ignore_band),
        "refine": options.refine,
        "tags": tags,
        # only where it matters, so that folders of older versions keep their hash
        **_refiner_identity(options),
        **({"maps": asdict(card.maps)} if card.maps != MapRule() else {}),
        **{key: engine[key] for key in ENGINE_KEYS},
    }


def _refiner_identity(options: LabelOptions) -> dict[str, Any]:
    found: dict[str, Any] = {}
    names = refiner_names(options.refine)
    if "crf" in names:
        found["crf"] = {"backend": options.crf_backend, **asdict(options.crf)}
    if "walk" in names and options.affinity is not None:
        affinity = read_card(Path(options.affinity)).weights_sha256
        found["walk"] = {"affinity": affinity, **asdict(options.walk)}
    return found


def engine_identity(engine: Engine) -> dict[str, str]:
    """The engine's part of :func:`identity`."""
    return {key: str(getattr(engine, key)) for key in ENGINE_KEYS}


def read_run(out: Path) -> dict[str, Any] | None:
    """The run.json of an output folder; None where there is none.

    Raises:
        WsssError: it cannot be read, or is not ours.
    """
    path = out / RUN_NAME
    if not os.path.lexists(path):
        return None
    try:
        # read as carefully as an image: a device in its place would never end
        run = json.loads(read_bytes(path))
        identity_ = run["identity"]
        if run["schema_version"] > SCHEMA_VERSION or not isinstance(identity_, dict):
            raise ValueError("it was written by a newer wsss-rt")
    except (ImageError, ValueError, KeyError, TypeError) as error:
        raise WsssError(
            f"cannot read {path}",
            why=str(error),
            fix="use another --out, or --no-resume to begin again",
            code="bad_run_record",
        ) from error
    return dict(run)


def refuse_difference(before: Mapping[str, Any], now: Mapping[str, Any], *, out: Path) -> None:
    """Keep masks of two configurations out of one folder.

    Raises:
        UsageError: naming each setting that differs.
    """
    plain = json.loads(json.dumps(now))
    changed = [
        f"{key} was {_short(before.get(key))}, now {_short(plain.get(key))}"
        for key in sorted({*before, *plain})
        if before.get(key) != plain.get(key)
    ]
    if changed:
        raise UsageError(
            f"{out} holds the masks of another configuration",
            why="; ".join(changed),
            fix="use another --out, or --no-resume to overwrite them",
            code="different_configuration",
        )


def describe_run(
    engine: Engine, options: LabelOptions, *, identity: Mapping[str, Any], context: Mapping[str, Any]
) -> dict[str, Any]:
    """The part of run.json that is known before the first image.

    Args:
        engine: the open engine.
        options: resolved against the card.
        identity: as :func:`identity` gives it.
        context: ``command`` (list of words), ``model`` (path), ``tags`` (source or None), ``formats``, and
            ``chosen``: names of the options that did not come from the card.
    """
    card, chosen = engine.card, context["chosen"]
    # seconds of this session's start belong to its own part of the record, not to why an engine was chosen
    choice = {key: value for key, value in engine.choice.items() if key != "seconds"}
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "command": list(context["command"]),
        "identity": dict(identity),
        "config_hash": config_hash(identity),
        "config": {
            "formats": list(context["formats"]),
            "tags": context["tags"],
            "batch": options.batch,
            "threads": options.threads,
            "max_pixels": options.max_pixels,
        },
        "thresholds": {
            "background": {
                "value": options.background,
                "from": "command" if "background" in chosen else "model card",
            },
            "tags": {"from": "model card" if card.recommended.tag_thresholds else "0.5 for every class"},
            "model_card_provenance": card.recommended.provenance,
        },
        "model": {
            "path": str(context["model"]),
            "method": card.method,
            "classes": list(card.classes),
            "weights_sha256": card.weights_sha256,
            "precision": card.precision,
            "training": card.training,
            "quality": card.quality,
        },
        "engine": {**engine_identity(engine), "choice": choice},
        "versions": versions(),
        "machine": machine(),
    }


def write_run(out: Path, run: Mapping[str, Any]) -> Path:
    """Write run.json whole; returns its path."""
    path = out / RUN_NAME
    text = json.dumps(run, indent=2, ensure_ascii=True, default=str)
    write_atomic(path, text.encode() + b"\n")
    return path


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that touch the numbers; only those installed."""
    found = {"python": platform.python_version(), "wsss-rt": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """The processor, its count as this process may use it, and the system."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        # not Linux: the platform's own name stands
        pass
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": name, "processors": count, "system": platform.platform(terse=True)}


def peak_memory_bytes() -> int:
    """Largest resident size that this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 20 else f"{text[:16]}…"
