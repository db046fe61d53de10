"""How figures and tables are written in the pages."""

from __future__ import annotations

from typing import Any


def percent(value: float | None) -> str:
    """A share as percent with one decimal; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f}"


def percent_exact(value: float) -> str:
    """A share as percent with two decimals, cut so that less than all never reads as 100."""
    return f"{int(1e4 * value) / 1e2:.2f}"


def spread(entry: dict[str, float | None]) -> str:
    """Mean and standard deviation over seeds, as percent."""
    low = "" if entry["std"] is None else f" ± {percent(entry['std'])}"
    return percent(entry["mean"]) + low


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A pipe table, first column to the left, the others to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def machine_line(result: dict[str, Any], *packages: str) -> str:
    """Where and with what a result was measured; ``packages`` take the place of the engines."""
    found = result["environment"]
    versions = found["versions"]
    shown = packages or ("onnxruntime", "openvino", "torch")
    named = ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)
    return f"{found['cpu']}, {found['cores']} cores; Python {versions['python']}, {named}.\n"
