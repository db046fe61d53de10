"""What earlier trials found, in the user's cache folder; losing it costs a trial and never a result."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_rt import __version__
from wsss_rt.engines.processor import gpu_names, processor_name
from wsss_rt.errors import WsssError
from wsss_rt.io.cache import cache_folder

if TYPE_CHECKING:
    from wsss_rt.model_card import ModelCard

#: Below the user's cache folder.
FOLDER = "engines"
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")


@dataclass(frozen=True)
class Trial:
    """A remembered trial: the faster backend, and per backend its median in milliseconds."""

    picked: str
    candidates: dict[str, float | str]


def cache_key(
    card: ModelCard, threads: int, device: str, precision: str, shape: tuple[int, int, int, int]
) -> dict[str, Any]:
    """Everything that the outcome of a trial depends on; sizes count by powers of two of their tokens."""
    batch, _, height, width = shape
    return {
        "wsss_rt": __version__,
        "model": card.weights_sha256,
        "libraries": {name: _version(name) for name in _PACKAGES},
        "processor": processor_name(),
        "gpus": list(gpu_names()),
        "threads": threads,
        "device": device,
        "precision": precision,
        "batch": batch,
        "tokens_log2": round(math.log2(max(1, height * width / card.input.patch**2))),
    }


def load(key: dict[str, Any]) -> Trial | None:
    """The outcome stored for ``key``; None where there is none that can be trusted."""
    try:
        raw = json.loads(_path(key).read_bytes())
        candidates = {str(name): float(value) for name, value in raw["candidates"].items()}
        if raw["key"] != key or not all(math.isfinite(value) for value in candidates.values()):
            return None
        return Trial(min(candidates, key=lambda name: candidates[name]), dict(candidates))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # absent, unreadable or damaged all mean the same: measure again
        return None


def store(key: dict[str, Any], picked: str, candidates: dict[str, float | str]) -> None:
    """Remember an outcome; a folder that cannot be written is no error."""
    _write(key, {"picked": picked, "candidates": candidates})


def load_parity(key: dict[str, Any]) -> dict[str, Any] | None:
    """What the parity gate found for ``key``; None where there is nothing that can be trusted."""
    try:
        raw = json.loads(_path(key).read_bytes())
        found = raw["parity"]
        return found if raw["key"] == key and isinstance(found["passed"], bool) else None
    except (OSError, ValueError, KeyError, TypeError):
        # absent, unreadable or damaged all mean the same: compare again
        return None


def store_parity(key: dict[str, Any], found: dict[str, Any]) -> None:
    """Remember what the parity gate found; a folder that cannot be written is no error."""
    _write(key, {"parity": found})


def _write(key: dict[str, Any], outcome: dict[str, Any]) -> None:
    from wsss_rt.io.atomic import write_atomic

    path = _path(key)
    text = json.dumps({"key": key, **outcome}, indent=1, sort_keys=True)
    try:
        path.parent.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.parent.mkdir(exist_ok=True, mode=0o700)
        write_atomic(path, text.encode())
    except (OSError, WsssError):
        # a read-only or full home folder costs a trial per run and nothing else
        return


def _path(key: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder(FOLDER) / f"{digest[:32]}.json"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
