"""What every committed result carries: the machine, the versions, the commit; written as stable JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = (
    "wsss-rt",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "onnxruntime",
    "openvino",
    "numba",
    "pydensecrf2",
    "torch",
    "timm",
    "tensorrt",
    "pycuda",
)


def environment() -> dict[str, Any]:
    """Machine and versions, as they stand now."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    cpu = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent
    ).stdout.strip()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "versions": versions,
        "commit": commit,
    }


def write_result(name: str, content: dict[str, Any]) -> Path:
    """Store a result under ``benchmarks/results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**content, "environment": environment()}, indent=2, sort_keys=True) + "\n")
    return path
