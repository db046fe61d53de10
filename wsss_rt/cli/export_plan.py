"""``wsss-rt export MODEL.onnx --to tensorrt``: a plan for the GPU here, in the cache of compiled engines."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from wsss_rt.errors import UsageError


def check_source(source: Path, given: list[str]) -> None:
    """Refuse what no plan can be built from, before anything is imported.

    Args:
        source: what the user named.
        given: options of other formats, as the user writes them.

    Raises:
        UsageError: not a file, or an option that does not go with a plan.
    """
    if given:
        raise UsageError(
            f"{', '.join(given)} does not go with --to tensorrt",
            why="a plan is built from a model that was exported already, and kept in the cache folder",
        )
    if not source.is_file() or source.suffix == ".safetensors":
        raise UsageError(
            f"{source} is no exported model",
            why="a TensorRT plan is built from the ONNX file",
            fix=f"first: wsss-rt export {source} --out model.onnx",
        )


def export_plan(source: Path, *, precision: str, images: Path | None) -> dict[str, Any]:
    """Build the plan that ``label --backend tensorrt`` will use, or find it in the cache.

    Args:
        source: an artifact.
        precision: empty for ``auto``.
        images: folder for the parity check; None generates scenes.

    Raises:
        UsageError: no GPU, no TensorRT, no pycuda.
        WsssError: the build or the parity check fails.
    """
    from wsss_rt.engines import open_engine
    from wsss_rt.gate_images import gate_images

    started = time.perf_counter()
    engine = open_engine(
        source,
        backend="tensorrt",
        precision=precision or "auto",
        images=lambda: gate_images(images),
        tell=lambda line: print(line, file=sys.stderr),
    )
    try:
        return {
            "written": engine.choice["plan"]["file"],
            "built": engine.choice["plan"]["built"],
            "precision": engine.precision,
            "gpu": engine.choice["plan"]["gpu"],
            "library": engine.choice["plan"]["library"],
            "seconds": round(time.perf_counter() - started, 2),
            "parity": engine.choice["parity"],
        }
    finally:
        engine.close()


def as_text(report: dict[str, Any], source: Path) -> str:
    """What a person reads of it."""
    versions = ", ".join(f"{name} {version}" for name, version in report["library"].items())
    done = "wrote" if report["built"] else "found"
    where = report["written"] or "nowhere (the cache folder cannot be used)"
    took = f"{report['seconds']:.1f} s"
    return (
        f"{done} {where}: {report['precision']}, {versions}, for {report['gpu']}, in {took}\n"
        f"next: wsss-rt label ./images --model {source} --backend tensorrt"
    )
