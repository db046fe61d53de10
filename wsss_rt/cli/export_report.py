"""What ``wsss-rt export`` prints of a file that it wrote."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsss_rt.export.onnx import ExportReport
    from wsss_rt.model_card import ModelCard


def as_dict(report: ExportReport) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "written": str(report.path),
        "bytes": report.size,
        "opset": report.opset,
        "seconds": round(report.seconds, 2),
        "parity_seconds": round(report.gate_seconds, 2),
        "parity": report.parity.as_dict() if report.parity is not None else "skipped",
        "next": _next_command(report),
    }


def as_text(report: ExportReport) -> str:
    """For a terminal."""
    if report.parity is None:
        checked = "parity check skipped; the card says so"
    else:
        checked = f"{report.parity.table()}\nequal to float32 PyTorch on {report.parity.source}"
    return (
        f"{checked}\n"
        f"wrote {report.path}: {report.size / 1e6:.2f} MB, {_compiled(report)}, {report.card.method}, "
        f"{_contents(report.card)}, in {report.seconds:.1f} s "
        f"({report.gate_seconds:.1f} s of it the check)\n"
        f"next: {_next_command(report)}"
    )


def _compiled(report: ExportReport) -> str:
    return (
        f"opset {report.opset}" if report.opset else f"{report.card.precision}, for this kind of machine only"
    )


def _contents(card: ModelCard) -> str:
    return "pairwise affinity" if card.kind == "affinity" else f"{len(card.classes)} classes"


def _next_command(report: ExportReport) -> str:
    file = shlex.quote(str(report.path))
    if report.card.kind == "affinity":
        return f"wsss-rt label ./images --refine walk --affinity {file}"
    return f"wsss-rt label ./images --model {file}"
