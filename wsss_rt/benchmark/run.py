"""One benchmark from its request to its report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from wsss_rt import run_record
from wsss_rt.assets import find_model
from wsss_rt.benchmark import inputs as inputs_
from wsss_rt.benchmark.ceilings import copy_rate, product_rate
from wsss_rt.benchmark.flops import Count, count_pass
from wsss_rt.benchmark.pipeline import pipeline_rows as measure_pipeline
from wsss_rt.benchmark.report import ModelRow, PipelineRow, Report, speed_ups
from wsss_rt.benchmark.subjects import (
    PACKAGES,
    Subject,
    judge,
    judge_package,
    open_subjects,
    package_pairs,
    quantized_pairs,
    wanted,
)
from wsss_rt.benchmark.turns import Task, run_in_turns
from wsss_rt.engines.runtime import check_threads, default_threads
from wsss_rt.errors import UsageError
from wsss_rt.label_plan import Job
from wsss_rt.model_card import is_package, read_artifact, refuse_kind
from wsss_rt.options import LabelOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsss_rt.engines.base import Engine
    from wsss_rt.model_card import ModelCard

SCOPES = ("model", "pipeline", "both")
# of an input that is measured: beyond it not even the image's own array is reasonable
_MOST_PIXELS = 2**24
# bytes of a number as the engine holds it
_WIDTHS = {"float32": 4, "bfloat16": 2}
# the ceiling is measured by a model that knows no int8; mixed runs in no one precision
_NO_CEILING = ("int8", "int8+bfloat16", "mixed")


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        model: a file or the name of an embedded model; None takes the newest embedded one.
        images: a folder; None draws scenes.
        backends, precisions: empty for all that run here.
        batches: images per call of the engine.
        sizes: (height, width) of the model's inputs, pixels; empty for the model's own. The pipeline takes
            images as they are.
        scope: ``model``, ``pipeline`` or ``both``.
        seconds: of steady state for each row.
        limit: images of the pipeline.
        refine, tags: of the pipeline, as ``label`` takes them.
        device, threads: as ``open_engine`` takes them.
        quantized: the same model in int8, as ``export --precision int8`` wrote it; measured beside it.
        package: the same model as ``export --to aotinductor`` compiled it; likewise.
    """

    model: str | Path | None = None
    images: Path | None = None
    backends: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1,)
    sizes: tuple[tuple[int, int], ...] = ()
    scope: str = "both"
    seconds: float = 2.0
    limit: int = 8
    refine: str = "none"
    tags: str | None = None
    device: str = "auto"
    threads: int | None = None
    quantized: Path | None = None
    package: Path | None = None


def measure(request: Request, tell: Callable[[str], None] = lambda line: None) -> Report:
    """Open the engines, hold them against float32, measure them in turns.

    Args:
        request: what to measure.
        tell: gets a line before each step.

    Raises:
        UsageError: an unknown name, or no image.
        WsssError: the model cannot be read, or no engine runs it.
    """
    began = time.perf_counter()
    check_threads(request.threads)
    path = find_model(request.model)
    card, model = read_artifact(path)
    refuse_kind(card, str(path))
    _check_beside(card, model, path, request)
    if is_package(model):
        files = {path: package_pairs(card, request.backends, request.precisions)}
    else:
        files = {path: wanted(request.backends, request.precisions, scope=request.scope)}
    if request.quantized is not None:
        files[request.quantized] = quantized_pairs(files[path])
    if request.package is not None:
        files[request.package] = package_pairs(read_artifact(request.package)[0])
    sizes = request.sizes or (inputs_.default_size(card.input),)
    for height, width in sizes:
        if min(height, width) < card.input.patch or height * width > _MOST_PIXELS:
            raise UsageError(
                f"--size {height}x{width} is no input of this model",
                why=f"a token is {card.input.patch}x{card.input.patch} px, and {_MOST_PIXELS} px are most",
            )
    threads = request.threads or default_threads()
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        given = stack.enter_context(inputs_.open_inputs(request.images, request.limit))
        model_inputs = {
            (batch, size): inputs_.batches(given.decoded.images, card, size, batch)
            for size in sizes
            for batch in request.batches
        }
        subjects: list[Subject] = []
        skipped: dict[str, str] = {}
        for file, pairs in files.items():
            opened, failed = open_subjects(
                file,
                pairs,
                [arrays[0] for arrays in model_inputs.values()],
                device=request.device,
                threads=request.threads,
                tell=tell,
            )
            subjects += opened
            skipped |= failed
        for subject in subjects:
            stack.callback(subject.engine.close)
        tell("measuring what this machine can do at most")
        copy = copy_rate(threads)
        for subject in subjects:
            # nor is there a package of plain products
            if subject.engine.precision in _NO_CEILING or subject.engine.backend == PACKAGES:
                continue
            subject.product_rate = product_rate(subject.engine, seconds=min(1.0, request.seconds))
        if is_package(model):
            for subject in subjects:
                judge_package(subject)
        else:
            tell("comparing masks with those of float32 ONNX Runtime")
            judge(path, subjects, given.decoded, threads=request.threads)
        model_rows: list[ModelRow] = []
        alone = [subject for subject in subjects if subject.alone]
        if request.scope != "pipeline" and alone:
            for size in sizes:
                count = None if is_package(model) else count_pass(model, card, size)
                for batch in request.batches:
                    tell(f"the model, batch {batch}, {size[0]}x{size[1]} px")
                    arrays = model_inputs[batch, size]
                    model_rows += _model_rows(alone, arrays, count, request.seconds)
        pipeline_rows: list[PipelineRow] = []
        if request.scope != "model":
            job = Job(
                inputs=list(given.paths),
                out=Path(stack.enter_context(TemporaryDirectory(prefix="wsss-rt-bench-"))),
                model=request.model,
                tags=request.tags,
                formats=("png",),
                options=LabelOptions(refine=request.refine, threads=request.threads),
                resume=False,
            )
            for batch in request.batches:
                tell(f"the pipeline, batch {batch}")
                pipeline_rows += measure_pipeline(
                    job, subjects, batch=batch, seconds=request.seconds, tell=tell
                )
    return Report(
        model=_describe(card, path),
        settings={
            "batches": list(request.batches),
            "sizes": [list(size) for size in sizes],
            "scope": request.scope,
            "seconds": request.seconds,
            "refine": request.refine,
            "tags": "given" if request.tags is not None else "predicted",
            "threads": threads,
        },
        images={"source": given.source, "count": len(given.paths)},
        copy_rate=copy,
        engines=[subject.as_dict() for subject in subjects],
        skipped=skipped,
        model_rows=speed_ups(model_rows, subjects[0].name),
        pipeline_rows=speed_ups(pipeline_rows, subjects[0].name),
        machine={**run_record.machine(), "load_before": round(load, 2)},
        versions=run_record.versions(),
        elapsed_seconds=time.perf_counter() - began,
    )


def _check_beside(card: ModelCard, model: bytes, path: Path, request: Request) -> None:
    """Refuse files beside the model that are other models, and an int8 one without its float32 model."""
    if card.precision == "int8":
        raise UsageError(
            f"{path} is quantised, and is measured beside the model that it was made from",
            fix=f"wsss-rt bench MODEL.onnx --quantized {path}",
        )
    belong = "give the two files that belong together"
    if request.quantized is not None:
        made = read_artifact(request.quantized)[0].options.get("quantized", {})
        if made.get("from") != card.weights_sha256:
            raise UsageError(f"{request.quantized} was not made from {path}", fix=belong)
    if request.package is None:
        return
    other, data = read_artifact(request.package)
    if not is_package(data) or is_package(model):
        raise UsageError(
            "--package goes with an ONNX model and names a package",
            fix="wsss-rt bench MODEL.onnx --package FILE.pt2, of `export --to aotinductor`",
        )
    # whether it holds the same weights is seen in its masks
    same = ("method", "classes", "kind", "input", "maps", "has_background")
    if any(getattr(card, name) != getattr(other, name) for name in same):
        raise UsageError(f"{request.package} is another model than {path}", fix=belong)


def _model_rows(
    subjects: Sequence[Subject], arrays: Sequence[NDArray[np.float32]], count: Count | None, seconds: float
) -> list[ModelRow]:
    """One size and batch in all engines; ``count`` is None where there is no graph to count in."""
    batch, _, height, width = arrays[0].shape
    tasks = []
    for subject in subjects:
        # the first call was when it was opened; libraries finish their preparations in the second
        subject.engine.infer(arrays[0])
        tasks.append(Task(partial(_call, subject.engine, cycle(arrays)), images=batch))
    run_in_turns(tasks, seconds)
    rows = []
    for subject, task in zip(subjects, tasks, strict=True):
        passes = task.images_per_second
        row = ModelRow(
            engine=subject.name,
            batch=batch,
            size=(height, width),
            agrees=subject.agrees,
            images_per_second=passes,
            milliseconds=task.samples.summary(),
            first_ms=subject.first_ms[batch, height, width],
        )
        if count is not None:
            elements = count.elements * _WIDTHS.get(subject.engine.precision, 4)
            rate = count.flops * passes
            row = replace(
                row,
                flops=count.flops,
                flops_by_operator=dict(count.operators),
                uncounted=count.uncounted,
                flops_per_second=rate,
                share_of_products=rate / subject.product_rate if subject.product_rate else None,
                bytes=elements,
                bytes_per_second=elements * passes,
            )
        rows.append(row)
    return rows


def _call(engine: Engine, source: Iterator[NDArray[np.float32]]) -> None:
    engine.infer(next(source))


def _describe(card: ModelCard, path: Path) -> dict[str, Any]:
    return {
        "name": path.stem,
        "file": path.name,
        "method": card.method,
        "kind": card.kind,
        "classes": len(card.classes),
        "weights_sha256": card.weights_sha256,
    }
