"""What ``wsss-rt export`` refuses before anything long starts: names, sources, targets that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_rt.errors import UsageError, nearest

if TYPE_CHECKING:
    from wsss_rt.cli.export_quantized import Quantisation

# with what their files end in
TARGETS = {"onnx": ".onnx", "aotinductor": ".pt2", "tensorrt": ".plan"}
WEIGHTS = ("float32", "float16")
# of compiled code; of ONNX files, which are compiled where they run
COMPILED_PRECISIONS = ("float32", "bfloat16", "float16")
ONNX_PRECISIONS = ("float32", "int8")
# methods whose outputs are no classes
CLASSLESS = ("psa",)


def check_quantisation(
    source: Path, precision: str, calibrate: str | None, truth: Path | None, out: Path | None
) -> Quantisation | None:
    """What --calibrate and --truth ask for; None where nothing is to be quantised.

    Raises:
        UsageError: they do not fit --precision.
    """
    if precision != "int8":
        if calibrate is not None or truth is not None:
            raise UsageError("--calibrate and --truth only go with --precision int8")
        return None
    if calibrate is None:
        raise UsageError(
            "--precision int8 needs images to calibrate with",
            fix="--calibrate DIR, images like those that will be labelled, or --calibrate scenes",
        )
    from wsss_rt.cli.export_quantized import Quantisation

    return Quantisation(
        calibrate, truth, out if out is not None else Path(f"{source.resolve().stem or 'model'}-int8.onnx")
    )


def check_names(to: str, weights: str, precision: str, device: str) -> None:
    """Refuse unknown names, and those that do not go together.

    Raises:
        UsageError: naming the option and what it goes with.
    """
    known = ONNX_PRECISIONS if to == "onnx" else COMPILED_PRECISIONS
    for value, choices, what in (
        (to, TARGETS, "export format"),
        (weights, WEIGHTS, "weight storage"),
        (device or "cpu", ("cpu", "cuda"), "device of a package"),
    ):
        if value not in choices:
            raise UsageError(f"no {what} {value!r}", fix=nearest(value, choices))
    value = precision or "float32"
    if value not in {*ONNX_PRECISIONS, *COMPILED_PRECISIONS}:
        raise UsageError(
            f"no precision {value!r} to export to",
            fix=nearest(value, {*ONNX_PRECISIONS, *COMPILED_PRECISIONS}),
        )
    if value not in known:
        other = "onnx" if value == "int8" else "aotinductor or tensorrt"
        raise UsageError(
            f"--precision {value} only goes with --to {other}",
            why="an ONNX file is compiled where it runs"
            if to == "onnx"
            else "int8 is stored in the ONNX file",
        )
    if to != "aotinductor" and device:
        raise UsageError(
            "--device only goes with --to aotinductor",
            why="an ONNX file is compiled where it runs"
            if to == "onnx"
            else "a plan is built for the GPU here",
        )
    if to != "onnx" and weights != "float32":
        raise UsageError("--weights only goes with --to onnx", fix="use --precision float16")


def check_source(source: Path, *, official: bool, **only_official: Any) -> None:
    """Refuse a source that the other options do not fit.

    Raises:
        UsageError: saying what to give instead.
    """
    if not source.exists():
        raise UsageError(
            f"no run or checkpoint at {source}", fix="give the folder that `wsss-rt train` wrote"
        )
    given = [f"--{name.replace('_', '-')}" for name, value in only_official.items() if value is not None]
    if official:
        wanted = ("method",) if only_official["method"] in CLASSLESS else ("method", "classes")
        missing = [name for name in wanted if only_official[name] is None]
        if missing:
            raise UsageError(
                "an official checkpoint says neither its method nor its classes",
                fix="add " + " and ".join(f"--{name}" for name in missing),
            )
        if source.is_dir():
            raise UsageError(f"{source} is a folder", fix="give the checkpoint's file, or drop --official")
    elif given:
        raise UsageError(f"{', '.join(given)} only goes with --official", why="a run says this itself")
    elif source.is_file() and source.name != "weights.safetensors":
        raise UsageError(
            f"{source} is not a run",
            fix="quantise an exported one with --precision int8 --calibrate DIR"
            if source.suffix == ".onnx"
            else "give a run folder, or add --official --method METHOD --classes voc|FILE",
        )


def check_target(target: Path, suffix: str) -> None:
    """Find out in the first second, and not after the export, that the file cannot be written."""
    from wsss_rt.io.atomic import probe_writable

    if target.is_dir():
        raise UsageError(f"--out {target} is a folder", fix=f"give a file name that ends in {suffix}")
    if target.parent.exists():
        probe_writable(target.parent)
