"""``wsss-rt export``: from a run or an official checkpoint to one file that engines run."""

from __future__ import annotations

import importlib.util
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from wsss_rt.errors import MissingExtraError, UsageError, nearest
from wsss_rt.gpu_driver import settle_absent_driver

if TYPE_CHECKING:
    from torch import nn

    from wsss_rt.export.onnx import ExportReport
    from wsss_rt.model_card import ModelCard
    from wsss_rt.training.checkpoints import RunConfig

# with what their files end in
TARGETS = {"onnx": ".onnx", "aotinductor": ".pt2"}
PLANNED = ("tensorrt",)
WEIGHTS = ("float32", "float16")
# of a package of compiled code
PRECISIONS = ("float32", "bfloat16", "float16")
# methods whose outputs are no classes
CLASSLESS = ("psa",)
_PACKAGES = ("torch", "timm", "onnx", "onnxscript", "safetensors")


def export(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|CHECKPOINT", help="Run folder, or a checkpoint with --official.")
    ],
    to: Annotated[
        str, typer.Option(metavar="FORMAT", help="onnx, or aotinductor: compiled for this kind of machine.")
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="[default: the run's name with .onnx or .pt2, here]", show_default=False
        ),
    ] = None,
    official: Annotated[
        bool, typer.Option("--official", help="CHECKPOINT is a state dict of the method's official code.")
    ] = False,
    method: Annotated[str | None, typer.Option(help="With --official: method, e.g. mctformer-v2.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="voc|FILE", help="With --official: names in the order of the outputs; psa has none."
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="With --official: ViT of timm. [default: DeiT-S, or the method's]")
    ] = None,
    img_size: Annotated[
        int | None, typer.Option(min=16, help="With --official: side of its training images, pixels.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Images for the parity check. [default: generated scenes]", show_default=False
        ),
    ] = None,
    layers_fused: Annotated[
        int | None, typer.Option(min=1, help="K, the last layers that maps are fused over.")
    ] = None,
    attention_type: Annotated[str | None, typer.Option(help="Which map: fused, patchcam, attention.")] = None,
    affinity: Annotated[
        bool | None, typer.Option("--affinity/--no-affinity", help="Refine maps with patch affinity.")
    ] = None,
    affinity_source: Annotated[
        str | None, typer.Option(help="Where patch affinity comes from: attention, tokens.")
    ] = None,
    background: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Recommended score of the background, 0 to 1.")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="How the file stores them: float32, or float16 for half the size.")
    ] = "float32",
    precision: Annotated[
        str, typer.Option(help="With --to aotinductor: float32, bfloat16, float16.", show_default=False)
    ] = "",
    device: Annotated[
        str, typer.Option(help="With --to aotinductor: cpu or cuda, which must be here.", show_default=False)
    ] = "",
    skip_parity: Annotated[
        bool, typer.Option("--skip-parity", help="Write without comparing with PyTorch; the card says so.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compile a trained model to one file with its card: ONNX for any machine, or a package for this kind.

    The file is first compared with float32 PyTorch on at least eight images, in every engine that is
    installed; nothing appears under its name unless scores, maps and masks agree.

    \b
    Examples:
      wsss-rt export runs/scenes --out scenes.onnx
      wsss-rt export runs/voc --out voc.onnx --images ./photos --weights float16
      wsss-rt export MCTformerV2.pth --official --method mctformer-v2 --classes voc --layers-fused 3
      wsss-rt export runs/voc --to aotinductor --device cuda --precision bfloat16 --out voc.pt2
    """
    _check_names(to, weights, precision, device)
    overrides = {
        "layers_fused": layers_fused,
        "attention_type": attention_type,
        "affinity": affinity,
        "affinity_source": affinity_source,
    }
    overrides = {name: value for name, value in overrides.items() if value is not None}
    _check_source(
        source, official=official, method=method, classes=classes, backbone=backbone, img_size=img_size
    )
    target = out if out is not None else Path(f"{source.resolve().stem or 'model'}{TARGETS[to]}")
    _check_target(target, TARGETS[to])
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError("wsss-rt export", extra="export", package=package)
    settle_absent_driver()

    from wsss_rt.parity import ParityError

    if to == "aotinductor":
        from wsss_rt.export.aotinductor import check_compiler

        check_compiler()
    if official:
        assert method is not None
        shape = {"backbone": backbone, "img_size": img_size}
        model, config = _load_official(
            source,
            method,
            classes,
            {**{key: value for key, value in shape.items() if value is not None}, **overrides},
        )
    else:
        model, config = _load_run(source, overrides)
    if background is not None:
        recommended = replace(
            config.recommended,
            background=background,
            provenance=f"background given at export; otherwise: {config.recommended.provenance}",
        )
        config = replace(config, recommended=recommended)
    try:
        report = _write(
            model,
            config,
            target,
            to=to,
            weights=weights,
            precision=precision,
            device=device,
            images=images,
            gate=not skip_parity,
        )
    except ParityError as error:
        typer.echo(
            json.dumps({"written": None, "parity": error.report.as_dict()}, indent=2)
            if json_
            else error.report.table()
        )
        raise
    typer.echo(json.dumps(_as_dict(report), indent=2, ensure_ascii=False) if json_ else _as_text(report))


def _write(
    model: nn.Module,
    config: RunConfig,
    target: Path,
    *,
    to: str,
    weights: str,
    precision: str,
    device: str,
    **options: Any,
) -> ExportReport:
    if to == "aotinductor":
        from wsss_rt.export.aotinductor import export_aotinductor

        return export_aotinductor(
            model, config, target, precision=precision or "float32", device=device or "cpu", **options
        )
    from wsss_rt.export.onnx import export_onnx

    stored: Literal["float32", "float16"] = "float16" if weights == "float16" else "float32"
    return export_onnx(model, config, target, weights=stored, **options)


def _check_names(to: str, weights: str, precision: str, device: str) -> None:
    if to in PLANNED:
        raise UsageError(f"export to {to} is not built yet", fix="use --to onnx")
    for value, choices, what in (
        (to, TARGETS, "export format"),
        (weights, WEIGHTS, "weight storage"),
        (precision or "float32", PRECISIONS, "precision of a package"),
        (device or "cpu", ("cpu", "cuda"), "device of a package"),
    ):
        if value not in choices:
            raise UsageError(f"no {what} {value!r}", fix=nearest(value, choices))
    if to != "aotinductor" and (precision or device):
        raise UsageError(
            f"{'--precision' if precision else '--device'} only goes with --to aotinductor",
            why="an ONNX file is compiled where it runs",
        )
    if to == "aotinductor" and weights != "float32":
        raise UsageError("--weights only goes with --to onnx", fix="use --precision float16")


def _check_source(source: Path, *, official: bool, **only_official: Any) -> None:
    if not source.exists():
        raise UsageError(
            f"no run or checkpoint at {source}", fix="give the folder that `wsss-rt train` wrote"
        )
    given = [f"--{name.replace('_', '-')}" for name, value in only_official.items() if value is not None]
    if official:
        wanted = ("method",) if only_official["method"] in CLASSLESS else ("method", "classes")
        missing = [name for name in wanted if only_official[name] is None]
        if missing:
            raise UsageError(
                "an official checkpoint says neither its method nor its classes",
                fix="add " + " and ".join(f"--{name}" for name in missing),
            )
        if source.is_dir():
            raise UsageError(f"{source} is a folder", fix="give the checkpoint's file, or drop --official")
    elif given:
        raise UsageError(f"{', '.join(given)} only goes with --official", why="a run says this itself")
    elif source.is_file() and source.name != "weights.safetensors":
        raise UsageError(
            f"{source} is not a run",
            fix="give a run folder, or add --official --method METHOD --classes voc|FILE",
        )


def _check_target(target: Path, suffix: str) -> None:
    """Find out in the first second, and not after the export, that the file cannot be written."""
    from wsss_rt.io.atomic import probe_writable

    if target.is_dir():
        raise UsageError(f"--out {target} is a folder", fix=f"give a file name that ends in {suffix}")
    if target.parent.exists():
        probe_writable(target.parent)


def _load_official(
    path: Path, method: str, classes: str | None, options: dict[str, Any]
) -> tuple[nn.Module, RunConfig]:
    from wsss_rt.classes import load_classes
    from wsss_rt.training.checkpoints import load_official_checkpoint

    names = () if classes is None else load_classes(classes).names
    return load_official_checkpoint(path, method, classes=names, model=options)


def _load_run(path: Path, overrides: dict[str, Any]) -> tuple[nn.Module, RunConfig]:
    from wsss_rt.training.checkpoints import load_run
    from wsss_rt.training.models import method_options

    model, config = load_run(path)
    known = method_options(config.method)
    for name, value in overrides.items():
        if name not in known:
            raise UsageError(f"{config.method} has no --{name.replace('_', '-')}")
        setattr(model, name, value)
    return model, replace(config, recommended_options={**config.recommended_options, **overrides})


def _as_dict(report: ExportReport) -> dict[str, Any]:
    return {
        "written": str(report.path),
        "bytes": report.size,
        "opset": report.opset,
        "seconds": round(report.seconds, 2),
        "parity_seconds": round(report.gate_seconds, 2),
        "parity": report.parity.as_dict() if report.parity is not None else "skipped",
        "next": _next_command(report),
    }


def _as_text(report: ExportReport) -> str:
    if report.parity is None:
        checked = "parity check skipped; the card says so"
    else:
        checked = f"{report.parity.table()}\nequal to float32 PyTorch on {report.parity.source}"
    return (
        f"{checked}\n"
        f"wrote {report.path}: {report.size / 1e6:.2f} MB, {_compiled(report)}, {report.card.method}, "
        f"{_contents(report.card)}, in {report.seconds:.1f} s "
        f"({report.gate_seconds:.1f} s of it the check)\n"
        f"next: {_next_command(report)}"
    )


def _compiled(report: ExportReport) -> str:
    return (
        f"opset {report.opset}" if report.opset else f"{report.card.precision}, for this kind of machine only"
    )


def _contents(card: ModelCard) -> str:
    return "pairwise affinity" if card.kind == "affinity" else f"{len(card.classes)} classes"


def _next_command(report: ExportReport) -> str:
    file = shlex.quote(str(report.path))
    if report.card.kind == "affinity":
        return f"wsss-rt label ./images --refine walk --affinity {file}"
    return f"wsss-rt label ./images --model {file}"
