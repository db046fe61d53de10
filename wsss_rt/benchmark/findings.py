"""What a report comes to, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from wsss_rt.benchmark.report import ModelRow, PipelineRow, Report
from wsss_rt.benchmark.subjects import MIXED, NOT_ALONE, PACKAGES


def verdict(report: Report) -> str:
    """The fastest engine whose masks are right, and how to ask for it."""
    rows: Sequence[ModelRow | PipelineRow] = report.pipeline_rows or report.model_rows
    right = [row for row in rows if row.agrees]
    if not right:
        return "no engine's masks are known to be right, so that none of these speeds means anything."
    best = max(right, key=lambda row: row.images_per_second)
    engine = next(entry for entry in report.engines if entry["name"] == best.engine)
    speed = f"{number(best.images_per_second)} images/s"
    if best.speed_up is not None and best.engine != report.engines[0]["name"]:
        speed += f", {best.speed_up:.2f} times {report.engines[0]['name']}"
    asked = f"--backend {engine['backend']} --precision {engine['precision']}"
    if engine["file"] != report.model["file"] or engine["backend"] == PACKAGES:
        # another file than the one that all engines run, or one that says both itself
        asked = f"--model {engine['file']}" + ("" if engine["backend"] == PACKAGES else f" {asked}")
    what = "the whole labeller" if report.pipeline_rows else "the model alone"
    return (
        f"of the engines whose masks are right {best.engine} is fastest, with {speed} in {what} at batch "
        f"{best.batch}; ask for it by `{asked}`."
    )


def remarks(report: Report) -> list[str]:
    """What must not be overlooked: wrong masks, engines that are missing, images that failed."""
    lines = []
    for engine in report.engines:
        found = engine["agreement"]
        if found is None:
            lines.append(
                f"nobody compared the masks of {engine['name']} (export without its gate), so no speed-up is "
                "shown for it"
            )
        elif not found["passed"]:
            lines.append(
                f"{engine['name']} does not agree with {found['against']} ({_failures(found)}), so no "
                "speed-up is shown for it"
            )
    lines += [f"{name} does not run here: {reason}" for name, reason in report.skipped.items()]
    lines += [
        f"{row.key}: {row.failed} of {row.runs * report.images['count']} images failed"
        for row in report.pipeline_rows
        if row.failed
    ]
    lines += [
        f"{row.key}: float32 failed on {row.second_looks_failed} of {row.runs * report.images['count']} "
        "images, which kept their bfloat16 masks"
        for row in report.pipeline_rows
        if row.second_looks_failed
    ]
    if report.model_rows and any(engine["precision"] == MIXED for engine in report.engines):
        lines.append(NOT_ALONE)
    uncounted = sorted({name for row in report.model_rows for name in row.uncounted})
    if uncounted:
        lines.append(f"the FLOPs leave out what {', '.join(uncounted)} multiplies")
    return lines


def _failures(found: dict[str, dict[str, float]]) -> str:
    return ", ".join(
        f"{output} differ by {found[output]['mean' if output == 'masks' else 'worst']:.2e}, "
        f"limit {found[output]['limit']:.0e}"
        for output in ("scores", "maps", "masks")
        if not found[output]["passed"]
    )


def number(value: float | None) -> str:
    """To three digits; a dash for what is not known."""
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"
