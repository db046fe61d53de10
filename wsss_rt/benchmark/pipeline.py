"""The whole labeller, from files to masks on the disk, timed by its own stopwatch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from shutil import rmtree
from typing import TYPE_CHECKING

from wsss_rt.benchmark.memory import peak_growth
from wsss_rt.benchmark.report import PipelineRow
from wsss_rt.benchmark.turns import Task, run_in_turns
from wsss_rt.bottleneck import find_bottleneck
from wsss_rt.errors import WsssError
from wsss_rt.io.manifest import Manifest
from wsss_rt.label_run import MANIFEST_NAME, WRITERS, label_folder
from wsss_rt.labeler import Labeler, pool_size
from wsss_rt.second_look import Tally
from wsss_rt.timing import StageTimes

if TYPE_CHECKING:
    from wsss_rt.benchmark.subjects import Subject
    from wsss_rt.engines.base import Engine
    from wsss_rt.label_plan import Job

# what an image goes through, in order
STAGES = ("read", "decode", "prepare", "infer", "localize", "refine", "decide", "encode", "write")
# runs over all images; each is a sample, and the stages have one for each image
LEAST_RUNS = 2


class PipelineTask(Task):
    """One labelling run after another over the same images, with an engine that stays open.

    Args:
        job: what to label; ``out`` is a folder for this task alone.
        engine: runs the model.
        images: how many the job has.
        tell: gets a line before anything that is done once on a machine.

    Attributes:
        stages: milliseconds per image of each stage, and of all of them as ``total``. Stages of several
            images run at once, so that an image's total is more than its share of the run.
        failed: images without a mask, in all runs.
        second_looks: of ``mixed``, in all runs.
    """

    def __init__(self, job: Job, engine: Engine, *, images: int, tell: Callable[[str], None]) -> None:
        super().__init__(self.run, images=images)
        self._job, self._engine, self._tell, self._runs = job, engine, tell, 0
        self.stages = StageTimes()
        self.failed = 0
        self.second_looks = Tally()

    def warm_up(self) -> None:
        """One run that does not count."""
        Labeler(engine=self._engine, options=self._job.options).warm_up(self._tell)
        self._label(counts=False)

    def run(self) -> None:
        """One run; its time is that of the labelling, without reading the model and listing files."""
        self._label(counts=True)

    def _label(self, *, counts: bool) -> None:
        self._runs += 1
        out = self._job.out / str(self._runs)
        summary = label_folder(replace(self._job, out=out), engine=self._engine)
        if summary.signal:
            raise KeyboardInterrupt
        if not summary.labelled:
            raise WsssError(
                f"none of the {summary.images} images could be labelled",
                why=", ".join(f"{count} {code}" for code, count in summary.errors.most_common()),
                fix="see what `wsss-rt label` says of them",
            )
        if counts:
            self.samples.add(1e3 * summary.wall_seconds)
            self.seconds += summary.wall_seconds
            self.failed += summary.failed
            for record in Manifest(out / MANIFEST_NAME).load():
                timings: Mapping[str, float] = record["timings"]
                self.stages.add({**timings, "total": sum(timings.values())})
                self.second_looks.add(record["notes"])
        rmtree(out)


def pipeline_rows(
    job: Job,
    subjects: Sequence[Subject],
    *,
    batch: int,
    seconds: float,
    tell: Callable[[str], None],
) -> list[PipelineRow]:
    """The labeller with each engine, in turns.

    Args:
        job: what to label, into a folder below ``out`` for each engine; its options leave the engine open.
        subjects: the engines.
        batch: images per call of the engine.
        seconds: of steady state for each.
        tell: gets a line before anything that is done once on a machine.

    Raises:
        WsssError: an engine labels none of the images.
    """
    images = len(job.inputs)
    tasks, growths = [], []
    for index, subject in enumerate(subjects):
        engine = subject.engine
        options = replace(job.options, backend=engine.backend, precision=engine.precision, batch=batch)
        own = replace(job, out=job.out / f"{batch}-{index}", options=options)
        task = PipelineTask(own, engine, images=images, tell=tell)
        with peak_growth() as growth:
            task.warm_up()
        tasks.append(task)
        growths.append(growth)
    run_in_turns(tasks, seconds, least=LEAST_RUNS)
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
                threads={"engine": 1, "workers": pool_size(job.options.threads), "writers": WRITERS},
            ),
            **({} if subject.alone else task.second_looks.as_dict()),
        )
        for subject, task, growth in zip(subjects, tasks, growths, strict=True)
    ]


def _sum(*parts: int | None) -> int | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None
