"""Labelling images into an output folder: what `wsss-rt label` does once its options are read."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from wsss_rt import run_record
from wsss_rt.bottleneck import find_bottleneck
from wsss_rt.errors import ImageError, WsssError
from wsss_rt.formats import needs, open_writers, parse_formats
from wsss_rt.formats.png import MASKS
from wsss_rt.gate_images import images_to_label
from wsss_rt.headers import header_size
from wsss_rt.interrupts import Interrupts
from wsss_rt.io.atomic import probe_writable, remove_leftovers
from wsss_rt.io.decode import printable
from wsss_rt.io.manifest import Manifest, RunLock, config_hash
from wsss_rt.label_plan import Job, Plan, make_plan
from wsss_rt.labeler import Labeler
from wsss_rt.localize import pass_sizes
from wsss_rt.progress import Progress, Silent
from wsss_rt.resume import is_done
from wsss_rt.run_summary import Summary
from wsss_rt.second_look import Tally
from wsss_rt.timing import StageTimes

if TYPE_CHECKING:
    from wsss_rt.engines.base import Engine
    from wsss_rt.io.sources import SourceImage
    from wsss_rt.results import Result

MANIFEST_NAME = "manifest.jsonl"
# failures that are named on stderr; the manifest has all of them
MAX_SHOWN = 20
# a power cut costs the records of this many seconds; a killed process loses none
SYNC_SECONDS = 1.0
# files that are flushed to the disk at once: a flush waits much longer than it works
WRITERS = 4
# below this many images a trial of the engines costs more than it saves
WORTH_A_TRIAL = 64
# images looked at to find a typical size
PEEKED = 8


def label_folder(
    job: Job,
    *,
    progress: Progress | None = None,
    stdin: IO[bytes] | IO[str] | None = None,
    engine: Engine | None = None,
) -> Summary:
    """Label a job's images into its output folder.

    Args:
        job: what to label.
        progress: is told what happens.
        stdin: where ``-`` among the inputs reads paths.
        engine: one that is already open on the job's model, in place of the one that the job asks for; it
            stays open.

    SIGINT and SIGTERM finish the images in flight and end the run, which can then be resumed.

    Raises:
        UsageError: as :func:`make_plan`, or the folder holds the masks of another configuration.
        WsssError: the model, the engine or the output folder cannot be used, or the disk is full.
    """
    told = progress or Silent()
    parse_formats(job.formats)
    plan = make_plan(job, stdin=stdin)
    for note in plan.notes:
        told.message(note)
    if plan.untagged:
        told.message(f"{plan.untagged} of {len(plan.sources)} images have no tags and will be reported")
    probe_writable(job.out)
    with RunLock(job.out) as lock:
        if lock.took_over:
            told.message(f"took over the lock that {lock.took_over} left behind")
        remove_leftovers(job.out)
        if not job.resume:
            _forget(job.out)
        previous = run_record.read_run(job.out)
        wanted = needs(job.formats)
        options = replace(job.options, keep_image="image" in wanted, keep_maps="maps" in wanted)
        opened = closing(_open_engine(job, plan, previous, told)) if engine is None else nullcontext(engine)
        with opened as running, Interrupts() as interrupts:
            labeler = Labeler(engine=running, tags=plan.tags, options=options)
            labeler.warm_up(told.message, interrupts.event.is_set)
            return _Run(job, plan, labeler, told, interrupts).execute(previous)


def _forget(out: Path) -> None:
    """Drop what an earlier run recorded; its masks are overwritten one by one."""
    for name in (MANIFEST_NAME, run_record.RUN_NAME):
        path = out / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise WsssError(f"cannot remove {path}", why=error.strerror or "", code="read_only") from error


def _open_engine(job: Job, plan: Plan, previous: Mapping[str, Any] | None, told: Progress) -> Engine:
    """The engine; of the earlier run's kind where there is one, so that a folder's masks agree to the bit."""
    from wsss_rt.engines import open_engine

    asked = {key: str(getattr(job.options, key)) for key in run_record.ENGINE_KEYS}
    if previous is not None:
        before = previous["identity"]
        kept = {key: str(before.get(key, "auto")) for key in run_record.ENGINE_KEYS}
        now = run_record.identity(plan.card, plan.options, tags=plan.tag_mode, engine=kept)
        run_record.refuse_difference(before, now, out=job.out)
        # a device is recorded with its number
        asked = {key: kept[key].split(":")[0] if value == "auto" else value for key, value in asked.items()}
    return open_engine(
        plan.model,
        backend=asked["backend"],
        device=asked["device"],
        precision=asked["precision"],
        threads=job.options.threads,
        sample_shape=_typical_shape(plan),
        trial=len(plan.sources) >= WORTH_A_TRIAL,
        gate=not job.options.skip_parity,
        images=lambda: images_to_label([source.path for source in plan.sources]),
        tell=told.message,
    )


def _typical_shape(plan: Plan) -> tuple[int, ...] | None:
    """(B, 3, H, W) of a call of the model for the first image whose header can be read."""
    for source in plan.sources[:PEEKED]:
        try:
            size = header_size(source.path, max_pixels=plan.options.max_pixels)
        except ImageError:
            # it will be reported in its turn
            continue
        ((width, height),), _ = pass_sizes(size, plan.card.input)
        most = plan.card.input.window or max(width, height)
        return 2 if plan.options.flip else 1, 3, min(height, most), min(width, most)
    return None


class _Run:
    """The state of one call of :func:`label_folder`."""

    def __init__(
        self, job: Job, plan: Plan, labeler: Labeler, progress: Progress, interrupts: Interrupts
    ) -> None:
        self.job, self.plan, self.labeler = job, plan, labeler
        self.progress, self.interrupts = progress, interrupts
        self.identity = run_record.identity(
            plan.card,
            labeler.options,
            tags=plan.tag_mode,
            engine=run_record.engine_identity(labeler.engine),
        )
        self.config_hash = config_hash(self.identity)
        self.manifest = Manifest(job.out / MANIFEST_NAME, sync_seconds=SYNC_SECONDS)
        # the collecting writers read it in the end, when it is complete
        self.record: dict[str, Any] = {}
        self.writers = open_writers(list(job.formats), job.out, labeler.classes, context=self.record)
        self.summary = Summary(job.out, len(plan.sources))
        self.times = StageTimes()
        self._told_failures, self._second_looks = 0, Tally()

    def execute(self, previous: Mapping[str, Any] | None) -> Summary:
        """Label what is not labelled yet, then build the files that collect the run."""
        if previous is not None:
            run_record.refuse_difference(previous["identity"], self.identity, out=self.job.out)
        self.record.update(self._describe(previous))
        run_record.write_run(self.job.out, self.record)
        done = self._find_done()
        pending = (source for source, skip in zip(self.plan.sources, done, strict=True) if not skip)
        self.summary.resumed = self.summary.labelled = sum(done)
        self.progress.start(len(done), done=sum(done))
        began = time.monotonic()
        try:
            with self.manifest:
                self._label(pending)
        finally:
            self.summary.wall_seconds = time.monotonic() - began
            self.progress.stop()
        if self._second_looks.kept:
            self.progress.message(
                f"{self._second_looks.kept} images that float32 failed on kept their bfloat16 masks; "
                f"{MANIFEST_NAME} notes which"
            )
        self._collect()
        self._finish_record()
        return self.summary

    def _describe(self, previous: Mapping[str, Any] | None) -> dict[str, Any]:
        record = run_record.describe_run(
            self.labeler.engine,
            self.labeler.options,
            identity=self.identity,
            context={
                "command": self.job.command,
                "model": self.plan.model,
                "tags": None if self.plan.tags is None else self.plan.tags.source,
                "formats": [writer.name for writer in self.writers],
                "chosen": self.job.chosen,
            },
        )
        if previous is not None and "engine" in previous:
            # the measurements that chose the engine were made when the folder was begun
            record["engine"] = dict(previous["engine"])
        record["engine"]["localization"] = self.labeler.localization
        record["engine"].pop("kernels", None)
        if kernels := self.labeler.kernels:
            record["engine"]["kernels"] = kernels
        return record

    def _find_done(self) -> bytearray:
        """A byte per image: 1 where the manifest and the files show that it needs no second labelling."""
        done = bytearray(len(self.plan.sources))
        if not self.job.resume:
            return done
        with self.manifest.latest() as records:
            for index, source in enumerate(self.plan.sources):
                if source.relative not in records:
                    continue
                done[index] = is_done(
                    records[source.relative],
                    source,
                    out=self.job.out,
                    config_hash=self.config_hash,
                    tags=self.plan.given_tags(source),
                    mask=f"{MASKS}/{source.mask}",
                    files=[key for writer in self.writers for key in writer.keys],
                )
        return done

    def _label(self, pending: Iterator[SourceImage]) -> None:
        """Label, write, and record in order; up to ``WRITERS`` images wait for the disk at once."""
        results = self.labeler.stream_sources(pending, stop=self.interrupts.event)
        writing: deque[tuple[Result, Future[dict[str, str]]]] = deque()
        with (
            ThreadPoolExecutor(WRITERS, thread_name_prefix="wsss-rt-write") as pool,
            closing(results),  # type: ignore[type-var]
        ):
            for result in results:
                writing.append((result, pool.submit(self._write, result)))
                if result.error is not None:
                    self.summary.errors[result.error.code] += 1
                    if self._has_too_many_errors():
                        break
                while writing and (len(writing) >= WRITERS or writing[0][1].done()):
                    self._record(*writing.popleft())
            while writing:
                self._record(*writing.popleft())
        if self.interrupts.number:
            self.summary.signal = self.interrupts.number
            self.summary.stopped = signal.Signals(self.interrupts.number).name

    def _has_too_many_errors(self) -> bool:
        limit, failed = self.job.max_errors, self.summary.failed
        if limit is None or failed <= limit:
            return False
        self.summary.stopped = f"{failed} images failed, the limit is {limit}" if limit else "an image failed"
        return True

    def _write(self, result: Result) -> dict[str, str]:
        """Write an image's files, in a thread of the pool; returns them for the record."""
        start = time.perf_counter()
        files: dict[str, str] = {}
        if result.error is None:
            for writer in self.writers:
                files |= writer.add(result)
        else:
            # a mask of an earlier run, from before the image was damaged
            with suppress(FileNotFoundError):
                (self.job.out / MASKS / result.mask_name).unlink()
        result.timings["write"] = round((time.perf_counter() - start) * 1e3, 3)
        return files

    def _record(self, result: Result, files: Future[dict[str, str]]) -> None:
        """Add an image to the manifest once its files are on the disk."""
        record = result.record() | files.result() | {"config": self.config_hash}
        if result.error is None:
            self.summary.labelled += 1
            self._second_looks.add(result.notes)
        else:
            self._told_failures += 1
            if self._told_failures <= MAX_SHOWN:
                self.progress.message(f"{printable(result.relative)}: {result.error}")
        self.times.add(result.timings | {"total": sum(result.timings.values())})
        self.manifest.append(record)
        self.progress.advance(failed=result.error is not None)

    def _collect(self) -> None:
        """Put the manifest in order and build the collecting files from it and from the masks."""
        self.summary.files.append(self.job.out / MANIFEST_NAME)
        if self.summary.signal:
            return
        self.manifest.finalize(source.relative for source in self.plan.sources)
        for writer in self.writers:
            self.summary.files += writer.finish(self.manifest.load())

    def _finish_record(self) -> None:
        record = self.record
        record["status"] = "finished" if not self.summary.stopped else f"stopped: {self.summary.stopped}"
        record["counts"] = self.summary.counts()
        found = find_bottleneck(
            self.times.totals(),
            seconds=self.summary.wall_seconds,
            threads={"engine": 1, "workers": self.labeler.workers, "writers": WRITERS},
        )
        record["session"] = {
            "resumed": self.summary.resumed,
            "wall_seconds": round(self.summary.wall_seconds, 3),
            "images_per_second": round(self.summary.images_per_second, 3),
            "stages_ms": self.times.summary(),
            "engine_start_seconds": self.labeler.engine.choice.get("seconds", {}),
            # of --precision mixed, whose time they are
            **(self._second_looks.as_dict() if self.labeler.engine.precision == "mixed" else {}),
            "bottleneck": None if found is None else found.as_dict(),
            "peak_memory_bytes": run_record.peak_memory_bytes(),
        }
        self.summary.files.append(run_record.write_run(self.job.out, record))
