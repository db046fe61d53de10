"""One benchmark from its request to its report."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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
from wsss_rt.benchmark.memory import peak_growth
from wsss_rt.benchmark.pipeline import LEAST_RUNS, PipelineTask
from wsss_rt.benchmark.report import ModelRow, PipelineRow, Report, speed_ups
from wsss_rt.benchmark.subjects import Subject, judge, open_subjects, wanted
from wsss_rt.benchmark.turns import Task, run_in_turns
from wsss_rt.bottleneck import find_bottleneck
from wsss_rt.engines.runtime import default_threads
from wsss_rt.label_plan import Job
from wsss_rt.label_run import WRITERS
from wsss_rt.labeler import pool_size
from wsss_rt.model_card import read_artifact, refuse_kind
from wsss_rt.options import LabelOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsss_rt.engines.base import Engine
    from wsss_rt.model_card import ModelCard

SCOPES = ("model", "pipeline", "both")
# bytes of a number as the engine holds it
_WIDTHS = {"float32": 4, "bfloat16": 2}


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


def measure(request: Request, tell: Callable[[str], None] = lambda line: None) -> Report:
    """Open the engines, hold them against float32, measure them in turns.

    Args:
        request: what to measure.
        tell: gets a line before each step.

    Raises:
        UsageError: an unknown name, or no image.
        WsssError: the model cannot be read, or no engine runs it.
    """
    path = find_model(request.model)
    card, model = read_artifact(path)
    refuse_kind(card, str(path))
    pairs = wanted(request.backends, request.precisions)
    sizes = request.sizes or (inputs_.default_size(card.input),)
    threads = request.threads or default_threads()
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        given = stack.enter_context(inputs_.open_inputs(request.images, request.limit))
        model_inputs = {
            (batch, size): inputs_.batches(given.decoded.images, card, size, batch)
            for size in sizes
            for batch in request.batches
        }
        subjects, skipped = open_subjects(
            path,
            pairs,
            [arrays[0] for arrays in model_inputs.values()],
            device=request.device,
            threads=request.threads,
            tell=tell,
        )
        for subject in subjects:
            stack.callback(subject.engine.close)
        tell("measuring what this machine can do at most")
        copy = copy_rate(threads)
        for subject in subjects:
            subject.product_rate = product_rate(subject.engine, seconds=min(1.0, request.seconds))
        tell("comparing masks with those of float32 ONNX Runtime")
        judge(path, subjects, given.decoded, threads=request.threads)
        model_rows: list[ModelRow] = []
        if request.scope != "pipeline":
            for size in sizes:
                count = count_pass(model, card, size)
                for batch in request.batches:
                    tell(f"the model, batch {batch}, {size[0]}x{size[1]} px")
                    arrays = model_inputs[batch, size]
                    model_rows += _model_rows(subjects, arrays, count, request.seconds)
        pipeline_rows: list[PipelineRow] = []
        if request.scope != "model":
            root = Path(stack.enter_context(TemporaryDirectory(prefix="wsss-rt-bench-")))
            for batch in request.batches:
                tell(f"the pipeline, batch {batch}")
                pipeline_rows += _pipeline_rows(request, subjects, given.paths, batch, root)
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
    )


def _model_rows(
    subjects: Sequence[Subject], arrays: Sequence[NDArray[np.float32]], count: Count, seconds: float
) -> list[ModelRow]:
    """One size and batch in all engines."""
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
        elements = count.elements * _WIDTHS.get(subject.engine.precision, 4)
        rows.append(
            ModelRow(
                engine=subject.name,
                batch=batch,
                size=(height, width),
                agrees=subject.agrees,
                images_per_second=passes,
                milliseconds=task.samples.summary(),
                first_ms=subject.first_ms[batch, height, width],
                flops=count.flops,
                flops_by_operator=dict(count.operators),
                uncounted=count.uncounted,
                flops_per_second=count.flops * passes,
                share_of_products=count.flops * passes / subject.product_rate,
                bytes=elements,
                bytes_per_second=elements * passes,
            )
        )
    return rows


def _call(engine: Engine, source: Iterator[NDArray[np.float32]]) -> None:
    engine.infer(next(source))


def _pipeline_rows(
    request: Request, subjects: Sequence[Subject], paths: Sequence[str], batch: int, root: Path
) -> list[PipelineRow]:
    """The labeller with each engine."""
    tasks, growths = [], []
    for index, subject in enumerate(subjects):
        job = Job(
            inputs=list(paths),
            out=root / f"{batch}-{index}",
            model=request.model,
            tags=request.tags,
            formats=("png",),
            options=LabelOptions(
                refine=request.refine,
                backend=subject.engine.backend,
                precision=subject.engine.precision,
                batch=batch,
                threads=request.threads,
            ),
            resume=False,
        )
        task = PipelineTask(job, subject.engine, images=len(paths))
        with peak_growth() as growth:
            task.warm_up()
        tasks.append(task)
        growths.append(growth)
    run_in_turns(tasks, request.seconds, least=LEAST_RUNS)
    return [
        PipelineRow(
            engine=subject.name,
            batch=batch,
            agrees=subject.agrees,
            images_per_second=task.images_per_second,
            runs=int(task.samples.count),
            failed=task.failed,
            stages_ms=task.stages.summary(),
            memory_bytes=_sum(subject.memory_bytes, growth.bytes),
            bottleneck=find_bottleneck(
                task.stages.totals(),
                seconds=task.seconds,
                threads={"engine": 1, "workers": pool_size(request.threads), "writers": WRITERS},
            ),
        )
        for subject, task, growth in zip(subjects, tasks, growths, strict=True)
    ]


def _sum(*parts: int | None) -> int | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _describe(card: ModelCard, path: Path) -> dict[str, Any]:
    return {
        "name": path.stem,
        "method": card.method,
        "kind": card.kind,
        "classes": len(card.classes),
        "weights_sha256": card.weights_sha256,
    }
