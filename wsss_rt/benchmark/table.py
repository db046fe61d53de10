"""A report as text for someone who did not write it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from wsss_rt.benchmark.compare import Change
from wsss_rt.benchmark.findings import number, remarks, verdict
from wsss_rt.benchmark.pipeline import STAGES
from wsss_rt.benchmark.report import ModelRow, PipelineRow, Report
from wsss_rt.benchmark.subjects import MIXED, PACKAGES
from wsss_rt.tables import print_table

_PERCENTILES = ("p50", "p90", "p95", "p99", "mean")
_BY_EXPORT = "A package was compared when it was exported, on the machine that compiled it."
# of the lines that explain a table
_WIDTH = 110


def show(report: Report) -> None:
    """Print all tables of a report, each with what its columns mean."""
    machine, model = report.machine, report.model
    _explain(
        f"{model['name']}: {model['method']}, {model['classes']} classes.",
        f"{machine['processor']}, {report.settings['threads']} of {machine['processors']} processors,",
        f"load {machine['load_before']:.1f} before;",
        ", ".join(f"{name} {version}" for name, version in report.versions.items()) + ".",
    )
    _show_engines(report)
    if report.model_rows:
        _show_model(report)
    if report.pipeline_rows:
        _show_pipeline(report)
    print()
    for line in remarks(report):
        print(f"note: {line}")
    _explain(f"In short: {verdict(report)} Measured in {report.elapsed_seconds:.0f} seconds.")


def show_changes(changes: Sequence[Change], earlier: str) -> None:
    """Print what changed since an earlier report."""
    rows = [
        [
            change.key,
            number(change.before),
            number(change.now),
            "-" if change.ratio is None else f"{change.ratio:.2f}",
            "wrong now" if change.disagrees else "",
        ]
        for change in changes
    ]
    print()
    header = ("row", "images/s before", "now", "now / before", "masks")
    print_table(f"against {earlier}", header, rows)


def _show_engines(report: Report) -> None:
    rows = []
    for engine in report.engines:
        seconds, found = engine["seconds"], engine["agreement"]
        rows.append(
            [
                engine["name"],
                *(f"{seconds.get(stage, 0):.2f}" for stage in ("read", "import", "build")),
                _megabytes(engine["memory_bytes"]),
                _rate(engine["product_flops_per_second"]),
                *_agreement(found),
            ]
        )
    header = (
        "engine",
        "read s",
        "import s",
        "build s",
        "MB",
        "GFLOP/s",
        "masks equal %",
        "map error",
        "right",
    )
    print()
    print_table("engines", header, rows)
    compared = [engine["agreement"] for engine in report.engines if engine["agreement"] is not None]
    against = " and ".join(dict.fromkeys(f"{one['against']} on {one['images']} images" for one in compared))
    _explain(
        "read, import, build: the file, the library (once), the engine.",
        "MB: memory at its peak, beyond what the process had.",
        "GFLOP/s: plain matrix products in this library and precision, the most a model can reach.",
        f"masks, map error: against {against or 'nothing'}; the largest error of a map over its largest",
        "value. right: both within what the precision may differ by.",
        *([_BY_EXPORT] if report.engines[0]["backend"] == PACKAGES and compared else []),
    )


def _agreement(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return ["-", "-", "unknown"]
    equal, worst = 1 - found["masks"]["mean"], found["maps"]["worst"]
    return [f"{100 * equal:.3f}", f"{worst:.1e}", "yes" if found["passed"] else "NO"]


def _show_model(report: Report) -> None:
    # two tables, because one of all columns is wider than most terminals
    times = [
        [
            *_what(row),
            f"{row.first_ms:.1f}",
            *(f"{row.milliseconds[name]:.1f}" for name in _PERCENTILES),
            str(row.milliseconds["count"]),
            number(row.images_per_second),
            _speed_up(row),
        ]
        for row in report.model_rows
    ]
    header = ("engine", "batch", "image", "first", *_PERCENTILES, "calls", "images/s", "speed-up")
    print()
    print_table("the model alone, from memory to memory: milliseconds of a call", header, times)
    _explain(
        "first: the very first call, in which libraries prepare themselves. p50 to p99: half, 90, 95 and 99",
        "of 100 later calls took at most this long; none is left out. speed-up: images/s over those of",
        f"{report.engines[0]['name']}, measured in turns with it.",
    )
    if all(row.flops is None for row in report.model_rows):
        _explain(
            "What a pass computes is counted in ONNX graphs, and a package holds none: give it beside the",
            "ONNX file, by --package, to see FLOP/s.",
        )
        return
    _show_rates(report)


def _show_rates(report: Report) -> None:
    counted = [row for row in report.model_rows if row.flops is not None]
    rates = [
        [
            *_what(row),
            _giga(row.flops_per_second),
            _percent(row.share_of_products),
            _giga(row.bytes_per_second),
            _percent(None if row.bytes_per_second is None else row.bytes_per_second / report.copy_rate),
        ]
        for row in counted
    ]
    print()
    print_table(
        "the model alone: how near it comes to what this machine can do",
        ("engine", "batch", "image", "GFLOP/s", "% of products", "GB/s", "% of copy"),
        rates,
    )
    sizes = ", ".join(
        dict.fromkeys(
            f"{_giga(row.flops, 3)} GFLOP and {_megabytes(row.bytes)} MB at {row.size[0]}x{row.size[1]} px"
            for row in counted
            if row.engine == report.engines[0]["name"]
        )
    )
    _explain(
        f"An image takes {sizes}: two FLOP for each multiply-accumulate of matrix products and convolutions",
        "(norms, softmax and the like are not counted), and each of their operands and results once.",
        "products: the GFLOP/s of the first table. copy: a copy of memory moves",
        f"{report.copy_rate / 1e9:.1f} GB/s here; what stays in caches is faster.",
    )


def _what(row: ModelRow) -> list[str]:
    return [row.engine, str(row.batch), f"{row.size[0]}x{row.size[1]}"]


def _show_pipeline(report: Report) -> None:
    rows, images = report.pipeline_rows, report.images["count"]
    looked = [row for row in rows if row.second_looks is not None]
    refined = f"--refine {report.settings['refine']}, tags {report.settings['tags']}"
    print()
    print_table(
        f"wsss-rt label on {report.images['source']}, {refined}",
        (
            "engine",
            "batch",
            "images/s",
            "speed-up",
            *(f"{name} ms" for name in _PERCENTILES),
            "MB",
            *(["again"] if looked else []),
        ),
        [
            [
                row.engine,
                str(row.batch),
                number(row.images_per_second),
                _speed_up(row),
                *(f"{row.stages_ms['total'][name]:.1f}" for name in _PERCENTILES),
                _megabytes(row.memory_bytes),
                *([_again(row, images)] if looked else []),
            ]
            for row in rows
        ],
    )
    _explain(
        "From files to masks on the disk. p50 to mean: milliseconds of one image in all its stages; several",
        "images are in work at once, so that images/s is more than this suggests. MB: engine and labeller at",
        f"their peak. {min(row.runs for row in rows)} runs over the images or more, after one to warm up.",
        *([f"again: images that {MIXED} ran once more in float32."] if looked else []),
        *(f"{row.key} waited most for {row.bottleneck}." for row in rows if row.bottleneck),
    )
    shown = [stage for stage in STAGES if any(stage in row.stages_ms for row in rows)]
    print()
    print_table(
        "where the time of an image goes: mean milliseconds of each stage",
        ("engine", "batch", *shown),
        [
            [
                row.engine,
                str(row.batch),
                *(f"{row.stages_ms[name]['mean']:.1f}" if name in row.stages_ms else "-" for name in shown),
            ]
            for row in rows
        ],
    )
    _explain("infer: the model. write: the mask as PNG, flushed to the disk.")


def _again(row: PipelineRow, images: int) -> str:
    return "-" if row.second_looks is None else f"{number(row.second_looks / row.runs)} of {images}"


def _speed_up(row: ModelRow | PipelineRow) -> str:
    return "-" if row.speed_up is None else f"{row.speed_up:.2f}"


def _rate(value: float) -> str:
    return f"{value / 1e9:.0f}" if value else "-"


def _giga(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value / 1e9:.{digits}f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}"


def _megabytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.0f}"


def _explain(*sentences: str) -> None:
    print(textwrap.fill(" ".join(sentences), width=_WIDTH, break_on_hyphens=False))
