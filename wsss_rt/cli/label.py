"""``wsss-rt label``: images in, masks out."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from wsss_rt.label_plan import Job
    from wsss_rt.progress import Progress
    from wsss_rt.run_summary import Summary

DEFAULT_OUT = "labels"


def label(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT...", help="Files, folders (recursive), globs, @list.txt, or - for paths on stdin."
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help=f"Output folder. [default: {DEFAULT_OUT}]")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Model. [default: the newest embedded one]")
    ] = None,
    tags: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|DIR|folders",
            help="Which classes each image shows: csv (image,tags with ;), one-hot csv, json, a folder of "
            "VOC xml, or the word folders (the parent folder's name). Without it tags are predicted.",
        ),
    ] = None,
    format: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,...",
            help="png, coco, overlay, report, npz; several. The masks are always written. "
            "[default: png,coco,report]",
        ),
    ] = None,
    refine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Refiner of the scores: none, crf, walk, or crf+walk one after the other. [default: none]",
        ),
    ] = None,
    crf_preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="mctformer, psa, segmentation. [default: segmentation]"),
    ] = None,
    crf_spatial: Annotated[
        str | None,
        typer.Option(
            metavar="SXY,COMPAT", help="Kernel in position: pixels, strength. [default: the preset's]"
        ),
    ] = None,
    crf_bilateral: Annotated[
        str | None,
        typer.Option(
            metavar="SXY,SRGB,COMPAT",
            help="Kernel in position and colour: pixels, levels, strength. [default: the preset's]",
        ),
    ] = None,
    crf_iterations: Annotated[
        int | None, typer.Option(metavar="N", help="Steps of mean field. [default: 10]")
    ] = None,
    crf_alpha: Annotated[
        str | None,
        typer.Option(
            metavar="A|LOW,HIGH",
            help="Background becomes (1 - best class)^A; with two, pixels on which they disagree become 255, "
            "as PSA trains on (preset psa: 4,32; MCTformer: 1,12). [default: --background]",
        ),
    ] = None,
    crf_stop: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="End early, one step after at most this share of the labels changed. [default: all steps]",
        ),
    ] = None,
    crf_memory: Annotated[
        float | None,
        typer.Option(
            metavar="GB", help="Refuse an image whose CRF needs more. [default: 4; on a GPU what it has]"
        ),
    ] = None,
    crf_backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="numba, pydensecrf. [default: numba]")
    ] = None,
    affinity: Annotated[
        str | None, typer.Option(metavar="FILE", help="Affinity model of --refine walk.")
    ] = None,
    walk_preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="mctformer, psa. [default: mctformer]")
    ] = None,
    walk_beta: Annotated[
        float | None, typer.Option(metavar="B", help="Exponent of the affinity. [default: 8]")
    ] = None,
    walk_steps: Annotated[
        int | None, typer.Option(metavar="N", help="Steps of the walk. [default: 64; psa: 256]")
    ] = None,
    walk_radius: Annotated[
        int | None, typer.Option(metavar="R", help="Cells of 8 px that are neighbours. [default: 5]")
    ] = None,
    walk_alpha: Annotated[
        float | None,
        typer.Option(
            metavar="A", help="Background becomes (1 - best class)^A. [default: --background; psa: 16]"
        ),
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option(metavar="S,...", help="Image scales, e.g. 1.0,0.75. [default: the model card's]"),
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option("--flip/--no-flip", help="Also run mirrored. [default: the model card's]"),
    ] = None,
    background: Annotated[
        float | None,
        typer.Option(metavar="T", help="Score of the background, 0..1. [default: the model card's]"),
    ] = None,
    ignore_band: Annotated[
        str | None,
        typer.Option(
            metavar="LO,HI", help="Pixels whose best class score is in [LO, HI) become the ignore value."
        ),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(metavar="NAME", help="auto, onnxruntime, openvino, tensorrt, aotinductor.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="auto, cpu, cuda. [default: auto]")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="auto, float32, bfloat16, mixed, float16, int8. [default: auto]"),
    ] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="N", help="Images of one shape per engine call. [default: auto]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Processors to use. [default: all allowed]")
    ] = None,
    skip_parity: Annotated[
        bool | None,
        typer.Option(
            "--skip-parity",
            help="Use an engine without comparing it with float32 first; run.json says so.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool | None,
        typer.Option("--resume/--no-resume", help="Go on with an earlier run. [default: resume]"),
    ] = None,
    dry_run: Annotated[
        bool | None, typer.Option("--dry-run", help="Count images, sizes and disk space; write nothing.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Label at most the first N images.")] = None,
    fail_fast: Annotated[
        bool | None, typer.Option("--fail-fast", help="Stop at the first image that fails.")
    ] = None,
    max_errors: Annotated[
        int | None, typer.Option(metavar="N", help="Stop when more than N images failed.")
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(metavar="N", help="Refuse larger images. [default: 64000000]")
    ] = None,
    as_json: Annotated[bool | None, typer.Option("--json", help="Print a summary as JSON on stdout.")] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Settings; flags go before them.")
    ] = None,
    quiet: Annotated[bool | None, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.")] = None,
) -> None:
    """Write a pixel mask for every image.

    \b
    Examples:
      wsss-rt label ./images --out ./labels
      wsss-rt label ./images --tags labels.csv --format png,coco,overlay --out ./labels
      wsss-rt label ./images --refine crf --crf-bilateral 60,10,8 --out ./labels
      wsss-rt label ./images --refine walk --affinity affinity.onnx --background 0.39 --out ./labels
      wsss-rt label 'photos/**/*.jpg' --model my.onnx --scales 1.0,0.75 --background 0.35 --out ./labels
      find . -name '*.png' | wsss-rt label - --dry-run

    \b
    Exit status: 0 all images labelled; 1 cannot run; 2 wrong usage; 3 finished, and some images
    failed (they are listed); 130 or 143 interrupted, and the same command goes on.
    """
    from wsss_rt.errors import UsageError
    from wsss_rt.label_config import label_options, merge_settings

    flags = {
        "input": inputs,
        "out": out,
        "model": model,
        "tags": tags,
        "format": None if format is None else ",".join(format),
        "refine": refine,
        "crf-preset": crf_preset,
        "crf-spatial": crf_spatial,
        "crf-bilateral": crf_bilateral,
        "crf-iterations": crf_iterations,
        "crf-alpha": crf_alpha,
        "crf-stop": crf_stop,
        "crf-memory": crf_memory,
        "crf-backend": crf_backend,
        "affinity": affinity,
        "walk-preset": walk_preset,
        "walk-radius": walk_radius,
        "walk-beta": walk_beta,
        "walk-steps": walk_steps,
        "walk-alpha": walk_alpha,
        "scales": scales,
        "flip": flip,
        "background": background,
        "ignore-band": ignore_band,
        "backend": backend,
        "device": device,
        "precision": precision,
        "batch": batch,
        "threads": threads,
        "skip-parity": skip_parity,
        "resume": resume,
        "dry-run": dry_run,
        "limit": limit,
        "fail-fast": fail_fast,
        "max-errors": max_errors,
        "max-pixels": max_pixels,
        "json": as_json,
        "quiet": quiet,
    }
    settings = merge_settings(flags, config)
    if not settings.get("input"):
        raise UsageError("no INPUT", fix="name a file, a folder, a glob, @list.txt or -; see --help")
    options = label_options(settings)

    # imported here: they bring numpy, OpenCV and Pillow
    from wsss_rt.formats import DEFAULT_FORMATS
    from wsss_rt.label_plan import Job

    job = Job(
        inputs=settings["input"],
        out=Path(settings.get("out", DEFAULT_OUT)),
        model=settings.get("model"),
        tags=settings.get("tags"),
        formats=settings.get("format", DEFAULT_FORMATS),
        options=options,
        resume=settings.get("resume", True),
        limit=settings.get("limit"),
        max_errors=0 if settings.get("fail-fast") else settings.get("max-errors"),
        command=["wsss-rt", *sys.argv[1:]],
        chosen=frozenset(settings),
    )
    if settings.get("dry-run"):
        _forecast(job, as_json=settings.get("json", False))
        return
    _label(job, as_json=settings.get("json", False), quiet=settings.get("quiet", False))


def _forecast(job: Job, *, as_json: bool) -> None:
    from wsss_rt.dry_run import forecast
    from wsss_rt.formats import parse_formats
    from wsss_rt.io.decode import quiet_pillow
    from wsss_rt.label_plan import make_plan

    quiet_pillow()
    formats = parse_formats(job.formats)
    result = forecast(make_plan(job, stdin=_stdin()), formats=formats, out=job.out)
    if as_json:
        print(json.dumps(result.as_dict()))
        return
    for line in result.lines():
        print(line)


def _label(job: Job, *, as_json: bool, quiet: bool) -> None:
    import cv2

    from wsss_rt.io.decode import quiet_pillow
    from wsss_rt.label_run import label_folder
    from wsss_rt.progress import open_progress

    quiet_pillow()
    # the pipeline has a thread for every processor already
    cv2.setNumThreads(1)
    progress = open_progress(quiet=quiet)
    summary = label_folder(job, progress=progress, stdin=_stdin())
    _tell(summary, job, progress)
    if as_json:
        print(json.dumps(summary.as_dict()), flush=True)
    if summary.exit_code:
        raise typer.Exit(summary.exit_code)


def _tell(summary: Summary, job: Job, progress: Progress) -> None:
    """The last lines of a run: counts, files, and what to do next."""
    earlier = f", {summary.resumed} of them by an earlier run" if summary.resumed else ""
    progress.message(
        f"labelled {summary.labelled} of {summary.images} images{earlier}, in {summary.wall_seconds:.1f} s "
        f"({summary.images_per_second:.1f} images/s)"
    )
    if summary.failed:
        classes = ", ".join(f"{count} {code}" for code, count in summary.errors.most_common())
        progress.message(f"{summary.failed} failed: {classes}; each is named in {job.out / 'manifest.jsonl'}")
    if summary.stopped:
        progress.message(f"stopped: {summary.stopped}; to go on: {_resume_command(job)}")
    if summary.signal:
        return
    progress.message(f"wrote {job.out / 'masks'}")
    for path in summary.files:
        progress.message(f"wrote {path}")
    report = next((path for path in summary.files if path.name == "report.html"), None)
    if report is not None:
        progress.message(f"next: open {report}")


def _resume_command(job: Job) -> str:
    words: list[Any] = [word for word in job.command if word not in ("--no-resume", "--fail-fast")]
    return shlex.join(words)


def _stdin() -> Any:
    """Bytes of stdin where there are any; a closed stdin is None."""
    return getattr(sys.stdin, "buffer", sys.stdin)
