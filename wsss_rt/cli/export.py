"""``wsss-rt export``: from a run or an official checkpoint to one file that engines run."""

from __future__ import annotations

import importlib.util
import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from wsss_rt.cli.export_checks import (
    TARGETS,
    check_names,
    check_quantisation,
    check_source,
    check_target,
)
from wsss_rt.cli.export_report import as_dict, as_text
from wsss_rt.errors import MissingExtraError, UsageError
from wsss_rt.gpu_driver import settle_absent_driver

if TYPE_CHECKING:
    from torch import nn

    from wsss_rt.export.onnx import ExportReport
    from wsss_rt.training.checkpoints import RunConfig

_PACKAGES = ("torch", "timm", "onnx", "onnxscript", "safetensors")


def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|CHECKPOINT|MODEL.onnx",
            help="Run folder; a checkpoint with --official; for tensorrt and int8 an ONNX file.",
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="onnx; aotinductor, compiled for this kind of machine; tensorrt, for this GPU.",
        ),
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
        str,
        typer.Option(
            help="int8: layers quantised by --calibrate. Compiled: float32, bfloat16, float16.",
            show_default=False,
        ),
    ] = "",
    device: Annotated[
        str, typer.Option(help="With --to aotinductor: cpu or cuda, which must be here.", show_default=False)
    ] = "",
    calibrate: Annotated[
        str | None,
        typer.Option(metavar="DIR|scenes", help="Of int8: 16 or more images like those to label."),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Of int8: masks of these images, to judge by mIoU too. Scenes bring theirs."
        ),
    ] = None,
    skip_parity: Annotated[
        bool,
        typer.Option("--skip-parity", help="Write without comparing with the original; the card says so."),
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compile a trained model to one file with its card: ONNX for any machine, or a package for this kind.

    The file is first compared with float32 PyTorch on at least eight images, in every engine that is
    installed; nothing appears under its name unless scores, maps and masks agree. With --precision int8
    layers are quantised that do not harm the masks, and the others stay in float; half of the images
    calibrate, the others judge the result.

    \b
    Examples:
      wsss-rt export runs/scenes --out scenes.onnx
      wsss-rt export runs/voc --out voc.onnx --images ./photos --weights float16
      wsss-rt export MCTformerV2.pth --official --method mctformer-v2 --classes voc --layers-fused 3
      wsss-rt export mine.onnx --precision int8 --calibrate ./photos --truth ./masks --out mine-int8.onnx
      wsss-rt export runs/voc --to aotinductor --device cuda --precision bfloat16 --out voc.pt2
      wsss-rt export voc.onnx --to tensorrt --precision float16
    """
    check_names(to, weights, precision, device)
    quantising = check_quantisation(source, precision, calibrate, truth, out)
    if to == "tensorrt":
        others = {
            "--out": out, "--official": official or None, "--method": method, "--classes": classes,
            "--backbone": backbone, "--img-size": img_size, "--layers-fused": layers_fused,
            "--attention-type": attention_type, "--affinity": affinity, "--affinity-source": affinity_source,
            "--background": background, "--skip-parity": skip_parity or None,
        }  # fmt: skip
        _export_plan(
            source, [name for name, value in others.items() if value is not None], precision, images, json_
        )
        return
    if quantising is not None and source.is_file() and source.suffix == ".onnx":
        from wsss_rt.cli.export_quantized import quantize_file

        check_target(quantising.out, TARGETS["onnx"])
        quantize_file(source, quantising, gate=not skip_parity, json_=json_)
        return
    overrides = {
        "layers_fused": layers_fused,
        "attention_type": attention_type,
        "affinity": affinity,
        "affinity_source": affinity_source,
    }
    overrides = {name: value for name, value in overrides.items() if value is not None}
    check_source(
        source, official=official, method=method, classes=classes, backbone=backbone, img_size=img_size
    )
    target = out if out is not None else Path(f"{source.resolve().stem or 'model'}{TARGETS[to]}")
    if quantising is not None:
        target = quantising.out
    check_target(target, TARGETS[to])
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
    with ExitStack() as stack:
        written = target
        if quantising is not None:
            # the float32 model is a step on the way, and nothing of it stays
            written = Path(stack.enter_context(TemporaryDirectory(prefix="wsss-rt-"))) / "float32.onnx"
        try:
            report = _write(
                model,
                config,
                written,
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
        if quantising is not None:
            from wsss_rt.cli.export_quantized import quantize_file

            quantize_file(written, quantising, gate=not skip_parity, json_=json_)
            return
    typer.echo(json.dumps(as_dict(report), indent=2, ensure_ascii=False) if json_ else as_text(report))


def _export_plan(source: Path, others: list[str], precision: str, images: Path | None, json_: bool) -> None:
    from wsss_rt.cli.export_plan import as_text, check_source, export_plan

    check_source(source, others)
    report = export_plan(source, precision=precision, images=images)
    typer.echo(json.dumps(report, indent=2) if json_ else as_text(report, source))


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
