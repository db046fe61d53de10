"""What this machine can do: versions, devices, and what is missing for which command.

Nothing here may fail: what cannot be found out is reported with its reason. torch is never imported, because
that takes seconds and may be what is broken.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from wsss_rt import __version__
from wsss_rt.hardware import gpus, memory, processor


@dataclass(frozen=True)
class Package:
    """A library that some command needs.

    Attributes:
        module: import name.
        distributions: names under which it is installed, the usual one first.
        probe: import it to see that it works; otherwise only its version is read.
    """

    module: str
    distributions: tuple[str, ...]
    probe: bool = False


BASE = (
    Package("numpy", ("numpy",), probe=True),
    Package("PIL", ("pillow", "pillow-simd"), probe=True),
    Package(
        "cv2",
        (
            "opencv-python-headless",
            "opencv-python",
            "opencv-contrib-python-headless",
            "opencv-contrib-python",
        ),
        probe=True,
    ),
    Package("onnxruntime", ("onnxruntime", "onnxruntime-gpu"), probe=True),
    Package("openvino", ("openvino",), probe=True),
    Package("numba", ("numba",)),
    Package("pycocotools.mask", ("pycocotools",), probe=True),
    Package("typer", ("typer",), probe=True),
    Package("rich", ("rich",), probe=True),
)
OPTIONAL = (
    Package("torch", ("torch",)),
    Package("torchvision", ("torchvision",)),
    Package("timm", ("timm",)),
    Package("lightning", ("lightning",)),
    Package("safetensors", ("safetensors",)),
    Package("matplotlib", ("matplotlib",)),
    Package("onnx", ("onnx",)),
    Package("onnxscript", ("onnxscript",)),
    Package("triton", ("triton",)),
    Package("tensorrt", ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")),
    Package("pycuda", ("pycuda",)),
)
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "train": ("torch", "torchvision", "timm", "lightning", "safetensors", "matplotlib"),
    "export": ("torch", "torchvision", "timm", "onnx", "onnxscript", "safetensors"),
}
_CODECS = {
    "jpg": "JPEG",
    "zlib": "PNG",
    "webp": "WebP",
    "libtiff": "TIFF",
    "jpg_2000": "JPEG 2000",
    "avif": "AVIF",
}


# what the import of a damaged library may raise; the user's own interrupt goes through
_BROKEN = (Exception, SystemExit)


def collect(*, check_kernels: bool = False) -> dict[str, Any]:
    """Everything that ``wsss-rt doctor`` shows, as JSON has it.

    Args:
        check_kernels: check every Triton kernel on the GPU anew, which may take minutes, and tell on stderr;
            otherwise what is known of them is shown.
    """
    packages = {_shown(package): _package(package) for package in (*BASE, *OPTIONAL)}
    broken_base = {
        name: state for name, state in packages.items() if state["needed"] and state["state"] != "ok"
    }
    return {
        "wsss_rt": {"version": __version__, "folder": str(Path(__file__).resolve().parent)},
        "python": {
            "version": platform.python_version(),
            "executable": sys.executable,
            "system": platform.platform(terse=True),
        },
        "processor": _guarded(processor),
        "tiles": _guarded(_tiles),
        "memory": _guarded(memory),
        "gpu": _guarded(gpus),
        "packages": packages,
        "engines": {
            "onnxruntime": _guarded(_providers),
            "openvino": _guarded(_openvino_devices),
            "tensorrt": _guarded(lambda: _tensorrt(packages)),
            "aotinductor": _guarded(lambda: _aotinductor(packages)),
        },
        "kernels": _guarded(lambda: _kernels(packages, check=check_kernels)),
        "codecs": _guarded(_codecs),
        "models": _guarded(_models),
        "cache": _guarded(_cache),
        "commands": _commands(packages, broken_base),
    }


def _guarded(probe: Callable[[], Any]) -> Any:
    """A probe's answer, or the reason why there is none: a broken driver must not hide the rest."""
    try:
        return probe()
    except _BROKEN as error:
        return {"error": _reason(error)}


def _reason(error: BaseException) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0]}" if first else type(error).__name__


def _shown(package: Package) -> str:
    return package.distributions[0]


def _package(package: Package) -> dict[str, Any]:
    needed = package in BASE
    found: dict[str, Any] = {"state": "missing", "version": None, "needed": needed}
    for name in package.distributions:
        try:
            found |= {"state": "ok", "version": metadata.version(name)}
        except metadata.PackageNotFoundError:
            continue
        except Exception as error:
            found |= {"state": "broken", "reason": _reason(error)}
        if name != package.distributions[0]:
            found["installed_as"] = name
        break
    if not package.probe:
        return found
    try:
        module = importlib.import_module(package.module)
    except _BROKEN as error:
        if found["state"] == "ok" or not isinstance(error, ModuleNotFoundError):
            found |= {"state": "broken", "reason": _reason(error)}
        return found
    if found["state"] == "missing":
        # importable without being an installed distribution, as a system package or a folder on the path
        found |= {"state": "ok", "version": str(getattr(module, "__version__", "unknown"))}
    return found


def _providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _tiles() -> dict[str, Any]:
    """Whether attention of bfloat16 engines can run in our own kernel, ``usable``, or ``why`` not."""
    from wsss_rt.engines.amx import refusal

    why = refusal()
    return {"usable": why is None, "why": why}


def _openvino_devices() -> dict[str, str]:
    from wsss_rt.engines.openvino import shared_core

    core = shared_core()
    return {name: str(core.get_property(name, "FULL_DEVICE_NAME")) for name in core.available_devices}


def _tensorrt(packages: Mapping[str, Any]) -> dict[str, Any]:
    """What ``--backend tensorrt`` lacks here, each with how to get it; nothing of it is imported."""
    from wsss_rt.engines.cuda import PYCUDA_FIX
    from wsss_rt.gpu_driver import driver_problem

    lacks: list[str] = []
    if problem := driver_problem():
        lacks.append(problem)
    for name, fix in (
        ("tensorrt", "pip install tensorrt"),
        ("pycuda", PYCUDA_FIX),
        ("onnx", "pip install onnx (to build plans)"),
    ):
        if packages[name]["state"] != "ok":
            lacks.append(f"{name} is missing: {fix}")
    return {"ready": not lacks, "lacks": lacks}


def _aotinductor(packages: Mapping[str, Any]) -> dict[str, Any]:
    """What packages of compiled code lack here, to be run and to be built; nothing of it is imported."""
    lacks = [] if packages["torch"]["state"] == "ok" else ["torch is missing: pip install 'torch>=2.11'"]
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        lacks.append(f"{compiler} is missing: apt-get install g++ (to build packages, not to run them)")
    return {"ready": not lacks, "lacks": lacks}


def _kernels(packages: Mapping[str, Any], *, check: bool) -> dict[str, Any]:
    """By operator of ``wsss_rt.kernels`` what runs on the GPU and why, asked in a process that imports torch;
    ``hindrance`` says why nothing can be known of any."""
    from wsss_rt.gpu_driver import driver_problem

    for name in ("torch", "triton"):
        if packages[name]["state"] != "ok":
            return {"hindrance": f"{name} is not installed", "kernels": {}}
    if problem := driver_problem():
        return {"hindrance": problem, "kernels": {}}
    words = [sys.executable, "-P", "-m", "wsss_rt.kernels.proof", "--json", *(() if check else ("--show",))]
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    done = subprocess.run(
        words,
        stdout=subprocess.PIPE,
        # the check says what it is doing
        stderr=None if check else subprocess.PIPE,
        text=True,
        timeout=None if check else 120,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    if not done.stdout.strip():
        complaint = (done.stderr or "").strip().splitlines()
        raise RuntimeError(complaint[-1] if complaint else f"status {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _codecs() -> dict[str, bool]:
    from PIL import features

    return {title: bool(features.check(name)) for name, title in _CODECS.items()}


def _models() -> dict[str, str]:
    from wsss_rt.assets import embedded_models
    from wsss_rt.model_card import read_card

    found: dict[str, str] = {}
    for name, path in embedded_models().items():
        card = _guarded(lambda path=path: read_card(path).method)  # type: ignore[misc]
        found[name] = card if isinstance(card, str) else f"unusable, {card['error']}"
    return found


def _cache() -> dict[str, Any]:
    from wsss_rt.engines.trial_cache import FOLDER
    from wsss_rt.io.cache import cache_folder

    folder = cache_folder(FOLDER)
    parent = folder
    # doctor makes no folders: the nearest one that is there decides
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    writable = parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)
    return {"folder": str(folder), "writable": writable}


def _commands(packages: Mapping[str, Any], broken_base: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Per command: whether it can run, what it lacks, and how to get that."""
    engines = [name for name in ("onnxruntime", "openvino") if packages[name]["state"] == "ok"]
    found: dict[str, dict[str, Any]] = {}
    for command in ("label", "eval", "scenes", "models", "train", "export", "bench"):
        lacking = [name for name in broken_base if name not in ("onnxruntime", "openvino")]
        if command in ("label", "bench") and not engines:
            lacking += ["onnxruntime or openvino"]
        fix = "pip install --force-reinstall wsss-rt" if lacking else ""
        absent = [name for name in EXTRAS.get(command, ()) if packages[name]["state"] != "ok"]
        if absent:
            fix = f"pip install 'wsss-rt[{command}]'"
        found[command] = {"ready": not (lacking or absent), "missing": [*lacking, *absent], "fix": fix}
    return found


def problems(report: Mapping[str, Any]) -> Sequence[str]:
    """Sentences about what keeps commands from running or makes them slow."""
    lines = []
    for name, state in report["packages"].items():
        if state["state"] == "broken":
            lines.append(f"{name} is installed and cannot be imported: {state.get('reason', '')}")
    if isinstance(report["models"], Mapping):
        if not report["models"]:
            lines.append("no model is embedded: name one with `wsss-rt label --model FILE`")
        lines += [f"model {name}: {state}" for name, state in report["models"].items() if "unusable" in state]
    cache = report["cache"]
    if not cache.get("writable", False):
        lines.append(
            f"the cache folder {cache.get('folder', '')} is not writable: engines are chosen anew every "
            "time; set XDG_CACHE_HOME to a folder of yours"
        )
    codecs = report["codecs"]
    if isinstance(codecs, Mapping):
        lacking = [name for name in ("JPEG", "PNG", "WebP", "TIFF") if codecs.get(name) is False]
        if lacking:
            lines.append(
                f"Pillow was built without {', '.join(lacking)}: pip install --force-reinstall pillow"
            )
    return lines
