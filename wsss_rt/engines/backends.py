"""What each backend can run, said once: artifacts, devices, precisions, and the package that it needs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass

from wsss_rt.errors import UsageError, nearest
from wsss_rt.model_card import ModelCard

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "float32", "bfloat16", "mixed", "float16", "int8")

# what people write, where the closest spelling would be the wrong guess
_SYNONYMS = {
    "gpu": "cuda",
    "ort": "onnxruntime",
    "ov": "openvino",
    "trt": "tensorrt",
    "aoti": "aotinductor",
    "inductor": "aotinductor",
    "fp32": "float32",
    "f32": "float32",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "i8": "int8",
}
# device files of NVIDIA's driver, natively and in WSL
_GPU_FILES = ("/dev/nvidiactl", "/dev/dxg")


@dataclass(frozen=True)
class Backend:
    """What one backend can run.

    Attributes:
        devices: where.
        precisions: that it can compute a float32 artifact in; ``int8`` is a matter of the artifact, and
            ``mixed`` is bfloat16 with a second look in float32.
        packages: runs packages of compiled code in place of ONNX.
        module: import name of its library.
        install: how to get that.
    """

    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    packages: bool = False
    module: str = ""
    install: str = ""

    @property
    def installed(self) -> bool:
        """Whether its library is there; that it works is only known by importing it."""
        return importlib.util.find_spec(self.module) is not None


# in the order of preference where nothing was measured: the first one starts fastest
TRAITS: Mapping[str, Backend] = {
    "onnxruntime": Backend(("cpu", "cuda"), ("float32",), module="onnxruntime", install="onnxruntime"),
    "openvino": Backend(("cpu",), ("float32", "bfloat16", "mixed"), module="openvino", install="openvino"),
    "tensorrt": Backend(
        ("cuda",), ("float32", "float16", "bfloat16"), module="tensorrt", install="'wsss-rt[tensorrt]'"
    ),
    "aotinductor": Backend(
        ("cpu", "cuda"), ("float32", "bfloat16", "float16"), packages=True, module="torch", install="torch"
    ),
}
BACKENDS = tuple(TRAITS)


def check_names(backend: str, device: str, precision: str) -> None:
    """Refuse unknown names, with the likely one.

    Raises:
        UsageError: one of them is unknown.
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


def gpu_present() -> bool:
    """Whether this machine runs NVIDIA's driver; costs a look at the device files."""
    return any(os.path.exists(name) for name in _GPU_FILES)


def here() -> tuple[str, ...]:
    """The backends of ONNX files that this machine may have: TensorRT only beside a GPU and its library."""
    with_gpu = gpu_present() and TRAITS["tensorrt"].installed
    return tuple(
        name for name, traits in TRAITS.items() if not traits.packages and (name != "tensorrt" or with_gpu)
    )


def supports(backend: str, precision: str, device: str = "auto") -> bool:
    """Whether a backend computes float32 artifacts in this precision on this device, wherever that is."""
    traits = TRAITS[backend]
    return (device == "auto" or device in traits.devices) and (
        precision == "auto" or precision in traits.precisions
    )


def eligible(backend: str, device: str, precision: str, card: ModelCard, *, package: bool) -> tuple[str, ...]:
    """The backends that could serve a request, before anything is imported.

    Args:
        backend: ``auto`` or the one that was asked for.
        device: likewise.
        precision: likewise.
        card: of the artifact.
        package: whether that is a package of compiled code.

    Raises:
        UsageError: none could, and which would do what was asked.
    """
    if package:
        if backend not in ("auto", "aotinductor"):
            raise UsageError(
                f"{backend} runs ONNX, and this model is a package that AOTInductor compiled",
                fix="drop --backend, or give the .onnx file",
            )
        _check_stored(precision, card, "was compiled to compute in", "wsss-rt export RUN --to aotinductor")
        return ("aotinductor",)
    if backend == "aotinductor":
        raise UsageError(
            "AOTInductor does not run ONNX files",
            why="it compiles from PyTorch's own program",
            fix="write a package: wsss-rt export RUN --to aotinductor --out FILE.pt2, and give it as --model",
        )
    names = here() if backend == "auto" else (backend,)
    if card.precision == "int8" or precision == "int8":
        _check_quantised(precision, card)
        # beside its int8 an artifact computes in float32, or in what is asked for and an engine has
        precision = "auto" if precision == "int8" else precision
    found = tuple(name for name in names if supports(name, precision, device))
    if not found:
        raise UsageError(
            f"{precision if precision != 'auto' else 'the model'} does not run "
            f"in {backend if backend != 'auto' else 'any installed backend'}"
            f"{f' on {device}' if device != 'auto' else ''}",
            why=_who_could(precision),
            fix="drop --precision, or use one of these with its --device",
        )
    return found


def fitting(backend: str, device: str, precision: str, card: ModelCard, *, package: bool) -> tuple[str, str]:
    """Backend and precision for a model that runs beside the one that they were asked for.

    Both as asked where this model's file can be run so, else without the backend, else without both: a
    package says itself what runs it, and in what it was compiled to compute.

    Args:
        backend, device, precision, card, package: as :func:`eligible` takes them.
    """
    for wanted in ((backend, precision), ("auto", precision)):
        try:
            eligible(wanted[0], device, wanted[1], card, package=package)
        except UsageError:
            continue
        return wanted
    return "auto", "auto"


def _check_stored(precision: str, card: ModelCard, words: str, other: str) -> None:
    if precision not in ("auto", card.precision):
        raise UsageError(f"this model {words} {card.precision}, not {precision}", fix=f"use {other}")


def _check_quantised(precision: str, card: ModelCard) -> None:
    """Refuse int8 of a model that was not quantised, and float32 of one that was."""
    if card.precision != "int8":
        raise UsageError(
            f"this model computes in {card.precision}, not in int8",
            fix="quantise it first: wsss-rt export MODEL.onnx --precision int8 --calibrate DIR --out FILE",
        )
    if precision in ("float32", "mixed"):
        raise UsageError(
            "this model is quantised to int8 and has no float32",
            fix="drop --precision, or give the model that it was made from",
        )


def _who_could(precision: str) -> str:
    could = [
        f"{name} ({' or '.join(traits.devices)}{'' if traits.installed else ', not installed'})"
        for name, traits in TRAITS.items()
        if not traits.packages and (precision == "auto" or precision in traits.precisions)
    ]
    return f"{precision if precision != 'auto' else 'it'} runs in {', '.join(could)}"
