"""What a benchmark found, as data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from wsss_rt.bottleneck import Bottleneck

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ModelRow:
    """The model alone: one engine, batch and size, from its second call on.

    Attributes:
        engine: name.
        batch: images per call.
        size: (height, width) of the input, pixels.
        agrees: whether the engine's masks are those of float32 ONNX Runtime.
        images_per_second: images over the time of all calls.
        milliseconds: of a call: count, mean and percentiles; no call is left out.
        first_ms: of the very first call at this shape.
        flops: of one image, two for each multiply-accumulate of its matrix products and convolutions; None,
            as the rates below, where there is no graph to count them in.
        flops_by_operator: the same, by operator of ONNX.
        uncounted: operators in the graph that hold products which are not counted.
        flops_per_second: reached.
        share_of_products: of the rate of plain matrix products in the same library and precision; None for
            int8 and for packages, of which that rate is not measured.
        bytes: that the counted products of one image read and write, each operand and result once.
        bytes_per_second: reached; caches can make it more than a copy of memory reaches.
        speed_up: images per second over those of the first engine; None where either's masks are wrong.
    """

    engine: str
    batch: int
    size: tuple[int, int]
    agrees: bool
    images_per_second: float
    milliseconds: Mapping[str, float | int]
    first_ms: float
    flops: int | None = None
    flops_by_operator: Mapping[str, int] = field(default_factory=dict)
    uncounted: tuple[str, ...] = ()
    flops_per_second: float | None = None
    share_of_products: float | None = None
    bytes: int | None = None
    bytes_per_second: float | None = None
    speed_up: float | None = None

    @property
    def key(self) -> str:
        """What the row is, in words; the same in every report."""
        return f"model, {self.engine}, batch {self.batch}, {self.size[0]}x{self.size[1]} px"

    @property
    def group(self) -> tuple[Any, ...]:
        """Rows of one group do the same work."""
        return self.batch, self.size


@dataclass(frozen=True)
class PipelineRow:
    """The labeller, from files to masks on the disk, with one engine.

    Attributes:
        engine: name.
        batch: images per call of the engine.
        agrees: whether the engine's masks are those of float32 ONNX Runtime.
        images_per_second: images over the time of all runs.
        runs: over all images.
        failed: images without a mask, in all runs.
        stages_ms: by stage, milliseconds of an image: count, mean and percentiles; ``total`` is their sum.
        bottleneck: what the runs waited for; see :class:`wsss_rt.bottleneck.Bottleneck`.
        memory_bytes: peak of engine and pipeline, beyond what the process had before; None where the system
            does not tell.
        second_looks: images that ``mixed`` ran again in float32, in all runs; None of other precisions.
        second_looks_failed: those that float32 failed on, which kept their bfloat16 masks; likewise.
        speed_up: images per second over those of the first engine; None where either's masks are wrong.
    """

    engine: str
    batch: int
    agrees: bool
    images_per_second: float
    runs: int
    failed: int
    stages_ms: Mapping[str, Mapping[str, float | int]]
    memory_bytes: int | None
    bottleneck: Bottleneck | None = None
    second_looks: int | None = None
    second_looks_failed: int | None = None
    speed_up: float | None = None

    @property
    def key(self) -> str:
        """What the row is, in words; the same in every report."""
        return f"pipeline, {self.engine}, batch {self.batch}"

    @property
    def group(self) -> tuple[Any, ...]:
        """Rows of one group do the same work."""
        return (self.batch,)


Row = TypeVar("Row", ModelRow, PipelineRow)


def speed_ups(rows: Sequence[Row], baseline: str) -> list[Row]:
    """Rows with their speed-up over the baseline's row of the same group.

    There is none for an engine whose masks are wrong, nor over one: a wrong result is not fast.

    Args:
        rows: of all engines.
        baseline: name of the engine that counts as 1.
    """
    base = {row.group: row for row in rows if row.engine == baseline and row.agrees}
    return [
        replace(row, speed_up=row.images_per_second / base[row.group].images_per_second)
        if row.agrees and row.group in base
        else row
        for row in rows
    ]


@dataclass(frozen=True)
class Report:
    """Everything that a benchmark found.

    Attributes:
        model: name, file, method, kind, number of classes, hash of the weights.
        settings: what was measured.
        images: ``source`` in words and ``count``.
        copy_rate: bytes per second that a copy of memory reads and writes.
        engines: per engine its name, file, start, memory, rate of matrix products and agreement, None where
            nobody compared it.
        skipped: engines that do not run here, with the reason.
        model_rows, pipeline_rows: the first engine's first.
        machine: processor, count, system, load before.
        versions: of Python and packages.
        elapsed_seconds: of the whole benchmark, from reading the model on.
    """

    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    images: Mapping[str, Any]
    copy_rate: float
    engines: Sequence[Mapping[str, Any]]
    skipped: Mapping[str, str]
    model_rows: Sequence[ModelRow]
    pipeline_rows: Sequence[PipelineRow]
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    elapsed_seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON; floating-point numbers to six digits."""
        rows: list[ModelRow | PipelineRow] = [*self.model_rows, *self.pipeline_rows]
        fields = {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "settings": self.settings,
            "images": self.images,
            "copy_bytes_per_second": self.copy_rate,
            "engines": list(self.engines),
            "skipped": self.skipped,
            "rows": [{"key": row.key, **asdict(row)} for row in rows],
            "machine": self.machine,
            "versions": self.versions,
            "elapsed_seconds": self.elapsed_seconds,
        }
        rounded: dict[str, Any] = _rounded(fields)
        return rounded

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(self.as_dict(), indent=2) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return value
