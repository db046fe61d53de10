"""The engines that a gate runs a file in before it is written."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsss_rt.engines.base import Engine
    from wsss_rt.model_card import ModelCard


def open_engines(artifact: bytes, card: ModelCard) -> tuple[dict[str, Engine], dict[str, str]]:
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
