"""``wsss-rt bench``: how fast a model labels here, and what models cost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsss_rt.errors import UsageError, nearest

if TYPE_CHECKING:
    from wsss_rt.benchmark.report import Report

_ONLY_COUNT = "Of --count: "


def bench(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Name or file. [default: the newest embedded one]")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Photographs. [default: generated scenes]")
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="Images of the pipeline.")] = 8,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,...", help="onnxruntime, openvino, tensorrt. [default: all that run here]"
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME,...", help="float32, bfloat16, mixed. [default: all that run here]"),
    ] = None,
    batch: Annotated[
        list[str] | None, typer.Option(metavar="N,...", help="Images a call. [default: 1]")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HxW,...",
            help="Inputs of the model, pixels; with --count the image. [default: the model's own]",
        ),
    ] = None,
    scope: Annotated[str, typer.Option(metavar="NAME", help="model, pipeline, both.")] = "both",
    seconds: Annotated[
        float, typer.Option(metavar="S", help="Steady state of each row; at least a few calls are made.")
    ] = 2.0,
    refine: Annotated[str, typer.Option(metavar="NAME", help="Of the pipeline: none, crf.")] = "none",
    tags: Annotated[
        str | None, typer.Option(metavar="FILE|DIR|folders", help="Of the pipeline. [default: predicted]")
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Processors to use. [default: all allowed]")
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write JSON as well; - prints it alone.")
    ] = None,
    quantized: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The same model in int8, by `export --precision int8`, beside it."),
    ] = None,
    package: Annotated[
        Path | None,
        typer.Option(metavar="FILE.pt2", help="The same model, by `export --to aotinductor`, beside it."),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="OLD.json", help="Show what changed since that --json.")
    ] = None,
    fail_if: Annotated[
        float | None,
        typer.Option(
            metavar="REL", help="With --compare: fail where a row is slower by more; 0.1 is a tenth."
        ),
    ] = None,
    count: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Instead, count multiply-accumulates of a method, a run folder or a model file; several.",
        ),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help=f"{_ONLY_COUNT}of a method by its name. [default: 20]")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help=f"{_ONLY_COUNT}of a method by its name: a ViT of timm.")
    ] = None,
    img_size: Annotated[
        int | None,
        typer.Option(min=16, help=f"{_ONLY_COUNT}of a method by its name: side of training images, pixels."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="OPTION=VALUE", help=f"{_ONLY_COUNT}of a method by its name, e.g. shrink_at=8."
        ),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers/--no-layers", help=f"{_ONLY_COUNT}show every layer.")
    ] = True,
    time_: Annotated[
        int,
        typer.Option(
            "--time", metavar="RUNS", min=0, help=f"{_ONLY_COUNT}also time so many passes of each in PyTorch."
        ),
    ] = 0,
) -> None:
    """Measure a model and the whole pipeline with every engine that runs here.

    Each engine's masks are compared with those of float32 ONNX Runtime first; where they differ, no
    speed-up is shown. Rows are measured in turns, beside what plain matrix products and memory copies reach
    in the same run. --count counts what models cost instead (needs PyTorch), by fvcore's rules, which are
    the "GFLOPs" of most vision papers.

    \b
    Examples:
      wsss-rt bench
      wsss-rt bench mine.onnx --images ./photos --batch 1,4 --size 375x500 --json now.json
      wsss-rt bench mine.onnx --scope model --backend openvino --precision float32,bfloat16
      wsss-rt bench mine.onnx --package mine.pt2
      wsss-rt bench --compare before.json --fail-if 0.1
      wsss-rt bench --count runs/mine
      wsss-rt bench --count segvit --count segvit-shrunk --backbone vit_large_patch16_224 --img-size 640
          --classes 150 --no-layers

    \b
    Exit status: 0 measured; 1 cannot run, or worse than --fail-if allows; 2 wrong usage.
    """
    sizes = tuple(_parse_size(text) for text in _split(size))
    method_options = {"classes": classes, "backbone": backbone, "img_size": img_size}
    if count:
        if model is not None:
            raise UsageError(f"what is {model}?", fix=f"--count counts several models: --count {model}")
        if len(sizes) > 1:
            raise UsageError("--count takes one --size")
        from wsss_rt.cli.bench_count import CountRequest, count_models

        wanted = CountRequest(
            tuple(count), sizes[0] if sizes else None, method_options, tuple(set_ or ()), time_
        )
        count_models(wanted, layers=layers, json_out=json_out)
        return
    if set_ or time_ or any(value is not None for value in method_options.values()):
        raise UsageError("--classes, --backbone, --img-size, --set and --time only go with --count")
    if fail_if is not None and (compare is None or not 0 <= fail_if < 1):
        raise UsageError(
            f"--fail-if {fail_if:g} needs --compare and is in [0, 1)", fix="--compare OLD.json --fail-if 0.1"
        )
    if not 0 < seconds < float("inf"):
        raise UsageError(f"--seconds {seconds:g} is no time")

    # imported here: they bring numpy, OpenCV and Pillow
    import cv2

    from wsss_rt.benchmark.compare import read_report
    from wsss_rt.benchmark.run import SCOPES, Request, measure
    from wsss_rt.io.decode import quiet_pillow

    if scope not in SCOPES:
        raise UsageError(f"no scope {scope!r}", fix=nearest(scope, SCOPES))
    request = Request(
        model=model,
        images=images,
        backends=tuple(_split(backend)),
        precisions=tuple(_split(precision)),
        batches=tuple(_parse_batch(text) for text in _split(batch)) or (1,),
        sizes=sizes,
        scope=scope,
        seconds=seconds,
        limit=limit,
        refine=refine,
        tags=tags,
        device=device,
        threads=threads,
        quantized=quantized,
        package=package,
    )
    # read first: a wrong file should not cost the measurement
    before = None if compare is None else read_report(compare)
    quiet_pillow()
    # the pipeline has a thread for every processor already
    cv2.setNumThreads(1)
    report = measure(request, lambda line: print(line, file=sys.stderr, flush=True))
    _tell(report, json_out)
    if before is not None and compare is not None:
        _compare(before, report, compare, fail_if, quiet=str(json_out) == "-")


def _tell(report: Report, json_out: Path | None) -> None:
    from wsss_rt.benchmark.table import show
    from wsss_rt.cli.bench_count import write_json

    if str(json_out) != "-":
        show(report)
    if json_out is not None:
        write_json(report.to_json(), json_out)


def _compare(
    before: dict[str, object], report: Report, earlier: Path, fail_if: float | None, *, quiet: bool
) -> None:
    from wsss_rt.benchmark.compare import compare, refuse_worse
    from wsss_rt.benchmark.table import show_changes

    changes = compare(before, report.as_dict())
    if not quiet:
        show_changes(changes, earlier.name)
    if fail_if is not None:
        refuse_worse(changes, fail_if, earlier.name)


def _split(values: list[str] | None) -> list[str]:
    """Words of an option that is given several times, or with commas; none twice."""
    words = [word.strip() for value in values or () for word in value.split(",")]
    return list(dict.fromkeys(word for word in words if word))


def _parse_batch(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise UsageError(f"--batch {text!r} is no number of images", fix="for example --batch 1,4")
    return int(text)


def _parse_size(text: str) -> tuple[int, int]:
    height, sign, width = text.lower().partition("x")
    if not sign or not height.isdecimal() or not width.isdecimal() or not int(height) or not int(width):
        raise UsageError(f"--size {text!r} is no size", fix="write it as height x width: --size 500x375")
    return int(height), int(width)
