"""``wsss-rt export --precision int8``: its options, and what is printed of the result."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from wsss_rt.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wsss_rt.export.layer_errors import LayerError
    from wsss_rt.export.quantize import QuantizeReport

# layers that a table shows
_SHOWN = 10


@dataclass(frozen=True)
class Quantisation:
    """What the options asked for.

    Attributes:
        calibrate: folder of images, or ``scenes``.
        truth: folder of their masks.
        out: the file.
    """

    calibrate: str
    truth: Path | None
    out: Path


def quantize_file(model: Path, asked: Quantisation, *, gate: bool, json_: bool) -> None:
    """Quantise an artifact and print what was found; a refusal prints its table as well.

    Raises:
        QualityError, UsageError, WsssError: as :func:`wsss_rt.export.quantize.quantize`.
    """
    if importlib.util.find_spec("onnx") is None:
        raise MissingExtraError("wsss-rt export --precision int8", extra="export", package="onnx")
    from wsss_rt.export.quantize import QualityError, quantize

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        report = quantize(
            model, asked.out, calibrate=asked.calibrate, truth=asked.truth, gate=gate, tell=tell
        )
    except QualityError as error:
        refused = {
            "written": None,
            "quality": error.report.as_dict(),
            "layers": [found.as_dict() for found in error.errors],
        }
        typer.echo(
            json.dumps(refused, indent=2) if json_ else f"{error.report.table()}\n{_layers(error.errors)}"
        )
        raise
    typer.echo(json.dumps(_as_dict(report), indent=2, ensure_ascii=False) if json_ else _as_text(report))


def _as_dict(report: QuantizeReport) -> dict[str, Any]:
    return {
        "written": str(report.path),
        "bytes": report.size,
        "seconds": round(report.seconds, 2),
        "quality": "skipped" if report.parity is None else report.parity.as_dict(),
        "quantized": report.quantized,
        "in_float": list(report.in_float),
        "layers": [found.as_dict() for found in report.errors],
        "next": _next_command(report),
    }


def _as_text(report: QuantizeReport) -> str:
    lines = []
    if report.parity is None:
        lines.append("quality gate skipped; the card says so")
    else:
        lines += [report.parity.table(), f"compared with {report.parity.against} on {report.parity.source}"]
    if report.errors:
        lines.append(_layers(report.errors))
    left = f", {len(report.in_float)} stay in float: {', '.join(report.in_float)}" if report.in_float else ""
    lines += [
        f"{report.quantized} layers in int8{left}",
        f"wrote {report.path}: {report.size / 1e6:.2f} MB, in {report.seconds:.1f} s",
        f"next: {_next_command(report)}",
    ]
    return "\n".join(lines)


def _layers(errors: Sequence[LayerError]) -> str:
    lines = [f"{'layer alone in int8, the worst first':48} {'pixels %':>9} {'maps':>9}"]
    lines += [f"{found.layer!s:48} {100 * found.masks:9.3f} {found.maps:9.2e}" for found in errors[:_SHOWN]]
    return "\n".join(lines)


def _next_command(report: QuantizeReport) -> str:
    return f"wsss-rt label ./images --model {shlex.quote(str(report.path))}"
