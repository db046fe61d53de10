"""``wsss-rt eval``: masks against ground truth; maps against boxes in ``eval_localization``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wsss_rt.classes import ClassSet
    from wsss_rt.evaluate import Evaluation
    from wsss_rt.sweep import SweepSummary

DEFAULT_WORST = 5


class Task(StrEnum):
    """What to compare, as ``--task`` takes it."""

    SEGMENTATION = "segmentation"
    LOCALIZATION = "localization"


def eval(
    prediction: Annotated[
        Path,
        typer.Argument(
            metavar="PRED",
            help="Output folder of `label`, or a folder of mask PNGs; for localization one of "
            "`label --format npz`.",
        ),
    ],
    truth: Annotated[
        Path,
        typer.Argument(
            metavar="TRUTH",
            help="Folder of mask PNGs (class numbers; 255 is ignored, or 65535 of more than 254 classes), "
            "or a VOC tree; for localization a CSV of image,class,left,top,right,bottom, or the folder "
            "that holds it.",
        ),
    ],
    task: Annotated[
        str, typer.Option(metavar="NAME", help="segmentation (masks) or localization (boxes).")
    ] = Task.SEGMENTATION.value,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES|FILE",
            help="Classes of the truth in the order of its numbers: voc, scenes, a file with a name per "
            "line, or names with commas. [default: classes.txt beside the truth, else the prediction's "
            "run.json]",
        ),
    ] = None,
    list_file: Annotated[
        Path | None,
        typer.Option("--list", metavar="FILE", help="Only these images, a name per line, as in ImageSets."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="CLASS,...", help="Show and average these classes alone; background is one."),
    ] = None,
    sweep: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also judge stored maps (`label --format npz`) at every threshold."),
    ] = None,
    official_sweep: Annotated[
        bool,
        typer.Option(
            "--official-sweep",
            help="With --sweep: also search as MCTformer's script does, which stops at the first threshold "
            "that does not improve.",
        ),
    ] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml",
            help="Judge stored maps (those of --sweep, else PRED's) as confidence, and write the background "
            "and ignore band that reach --target, for `label --config`.",
        ),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(metavar="P", help="With --calibrate: precision of the pixels kept. [default: 0.9]"),
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Localization: the CSV of boxes, if TRUTH is a folder. [default: boxes.csv in it]",
        ),
    ] = None,
    box_threshold: Annotated[
        float | None,
        typer.Option(
            metavar="T",
            help="Localization: share of a map's maximum at which Top-1, Top-5 and GT-known take boxes. "
            "[default: the best for GT-known on this truth; 0.1 for the variant]",
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Localization: also count as another program does: token-refinement."
        ),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave images without a prediction out.")
    ] = False,
    ignore_predicted: Annotated[
        bool,
        typer.Option(
            "--ignore-predicted", help="Leave pixels predicted as ignore out; by default they count as wrong."
        ),
    ] = False,
    worst: Annotated[
        int | None,
        typer.Option(
            metavar="K", min=0, help=f"List the K images with the lowest mIoU. [default: {DEFAULT_WORST}]"
        ),
    ] = None,
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write everything as JSON; - for stdout.")
    ] = None,
) -> None:
    """Compare with ground truth: masks by IoU per class, or the boxes of maps by the usual accuracies.

    Files match by relative path, else by name. A truth without a prediction, or of another size, is an
    error. Ignored pixels of the truth never count; predicted as ignore counts as wrong, unless left out.

    Localization gives Top-1 and Top-5 classification and localization, GT-known, and MaxBoxAccV2 (all
    regions' boxes, IoU 0.3, 0.5, 0.7, the best threshold of each), for one class an image. A box is a line
    of the CSV, in pixels of the stored image; right and bottom lie behind the last pixel. The file serves
    as --tags of `label` too, which then writes the map of the true class.

    \b
    wsss-rt eval labels data/SegmentationClass
    wsss-rt eval labels data --list data/ImageSets/Segmentation/val.txt --json result.json
    wsss-rt eval masks gt --classes voc --only cat,dog,horse
    wsss-rt eval labels data --sweep labels/maps
    wsss-rt eval labels data --calibrate thresholds.toml --target 0.9
    wsss-rt eval labels boxes.csv --task localization
    wsss-rt eval labels boxes.csv --task localization --variant token-refinement --box-threshold 0.12
    """
    from wsss_rt.errors import UsageError

    chosen = _parse_task(task)
    of_masks = {
        "--only": only,
        "--sweep": sweep,
        "--official-sweep": official_sweep or None,
        "--calibrate": calibrate,
        "--target": target,
        "--ignore-predicted": ignore_predicted or None,
        "--worst": worst,
    }
    of_boxes = {"--boxes": boxes, "--box-threshold": box_threshold, "--variant": variant}
    _refuse_given(of_boxes if chosen is Task.SEGMENTATION else of_masks, chosen)
    if chosen is Task.LOCALIZATION:
        from wsss_rt.box_results import parse_variant
        from wsss_rt.cli import eval_localization
        from wsss_rt.evaluate_boxes import BoxOptions

        box_options = BoxOptions(
            classes=None if classes is None else _parse_classes(classes),
            threshold=box_threshold,
            variant=None if variant is None else parse_variant(variant),
            allow_missing=allow_missing,
        )
        eval_localization.run(
            prediction, truth, box_options, boxes=boxes, list_file=list_file, json_out=json_out
        )
        return
    from wsss_rt.cli import eval_calibrate
    from wsss_rt.evaluate import Options, evaluate
    from wsss_rt.pairing import open_prediction, open_truth, pair_masks, read_list

    predicted, true = open_prediction(prediction), open_truth(truth)
    if sweep is not None and not sweep.is_dir():
        raise UsageError(f"no folder {sweep}", fix="write maps with `wsss-rt label --format npz`")
    if official_sweep and sweep is None:
        raise UsageError("--official-sweep needs maps", fix="name their folder with --sweep")
    if target is not None and calibrate is None:
        raise UsageError("--target needs --calibrate", fix="name the file to write with --calibrate")
    wish = None if calibrate is None else eval_calibrate.request(predicted, sweep, target)
    options = Options(
        classes=None if classes is None else _parse_classes(classes),
        only=tuple(name.strip() for name in (only or "").split(",") if name.strip()),
        allow_missing=allow_missing,
        ignore_predicted=ignore_predicted,
        sweep=sweep,
        official_sweep=official_sweep,
        calibrate=wish,
    )
    wanted = None if list_file is None else read_list(list_file)
    pairs = pair_masks(predicted.folder, true.folder, wanted=wanted)
    if wanted is not None:
        # predictions beyond the list were not asked for
        pairs = type(pairs)(pairs.matched, pairs.missing, ())
    result = evaluate(predicted, true, pairs, options)
    if calibrate is not None and wish is not None and result.calibration is not None:
        eval_calibrate.write(result.calibration, calibrate, predicted, true, wish.maps)
    if json_out is not None:
        sides = {"prediction": str(predicted.folder), "truth": str(true.folder)}
        text = json.dumps(sides | result.as_dict(), indent=2, allow_nan=False)
        if json_out == "-":
            print(text)
            return
        from wsss_rt.io.atomic import write_atomic

        write_atomic(json_out, text.encode("utf-8", "backslashreplace") + b"\n")
    _show(result, worst=DEFAULT_WORST if worst is None else worst)
    if calibrate is not None and result.calibration is not None:
        eval_calibrate.show(result.calibration, calibrate)
    if json_out is not None:
        print(f"wrote {json_out}")


def _parse_task(name: str) -> Task:
    from wsss_rt.errors import UsageError, nearest

    known = [entry.value for entry in Task]
    if name not in known:
        raise UsageError(f"unknown task {name!r}", fix=nearest(name, known))
    return Task(name)


def _refuse_given(options: Mapping[str, object], task: Task) -> None:
    """An error about an option that the task has no use for, rather than a result that ignored it."""
    from wsss_rt.errors import UsageError

    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UsageError(f"{', '.join(given)} does not go with --task {task.value}", fix="leave it out")


def _parse_classes(text: str) -> ClassSet:
    from wsss_rt.classes import load_classes

    names = [name.strip() for name in text.split(",")]
    return load_classes(names if len(names) > 1 else text)


def _show(result: Evaluation, *, worst: int) -> None:
    from wsss_rt.io.decode import printable
    from wsss_rt.tables import percent, print_table

    matrix, ignoring = result.matrix, result.ignore_predicted
    columns = (result.iou(), matrix.precision(), matrix.recall(ignore_predicted=ignoring))
    truth, predicted = matrix.truth(), matrix.predicted()
    rows = [
        [result.names[value], *(percent(column[value]) for column in columns)]
        + [f"{truth[value]:,}", f"{predicted[value]:,}"]
        for value in result.chosen
    ]
    header = ("class", "IoU %", "precision %", "recall %", "true pixels", "predicted pixels")
    print_table(f"{len(result.images)} images", header, rows)
    print()
    print(f"mIoU             {percent(result.miou()):>6} %   over the classes above that occur")
    if 0 in result.chosen:
        print(f"mIoU foreground  {percent(result.miou(foreground=True)):>6} %   without background")
    accuracy = matrix.pixel_accuracy(ignore_predicted=ignoring)
    print(f"pixel accuracy   {percent(accuracy):>6} %   over all classes")
    if matrix.ignored.any():
        treatment = "left out" if ignoring else "counted as wrong; --ignore-predicted leaves them out"
        print(
            f"coverage         {percent(matrix.coverage()):>6} %   pixels predicted as ignore are {treatment}"
        )
    for note in result.notes:
        print(f"note: {note}")
    for names, text in ((result.missing, "without prediction, left out"), (result.extra, "without truth")):
        if names:
            more = "" if len(names) <= 3 else ", .."
            print(f"{len(names)} {text}: {', '.join(printable(name) for name in names[:3])}{more}")
    if result.sweep is not None:
        _show_sweep(result.sweep)
    if worst and len(result.images) > 1:
        print()
        rows = [
            [printable(image.image), percent(image.miou), percent(image.pixel_accuracy)]
            for image in result.worst(worst)
        ]
        print_table("lowest mIoU", ("image", "mIoU %", "accuracy %"), rows)


def _show_sweep(sweep: SweepSummary) -> None:
    from wsss_rt.tables import percent, print_table

    curve = sweep.curve
    print()
    rows = [
        [
            f"{curve.thresholds[index]:.2f}",
            percent(curve.miou[index]),
            percent(curve.false_positive[index]),
            percent(curve.false_negative[index]),
        ]
        for index in range(0, len(curve.thresholds), 5)
    ]
    header = ("threshold", "mIoU %", "false positive %", "false negative %")
    print_table("stored maps, background threshold", header, rows)
    threshold, miou = curve.best()
    print(f"best             {percent(miou):>6} %   at {threshold:.2f}, chosen on this truth")
    if sweep.official is not None:
        at, value = sweep.official
        print(f"official search  {percent(value):>6} %   at {at:.2f}, stops at a dip")
