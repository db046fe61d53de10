"""``wsss-rt eval --task localization``: maps against true boxes, as tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wsss_rt.errors import UsageError
from wsss_rt.tables import percent, print_table

if TYPE_CHECKING:
    from wsss_rt.box_results import BoxEvaluation, VariantResult
    from wsss_rt.evaluate_boxes import BoxOptions
    from wsss_rt.metrics.boxes import LocalizationAccuracy

BOXES_FILE = "boxes.csv"


def run(
    prediction: Path,
    truth: Path,
    options: BoxOptions,
    *,
    boxes: Path | None = None,
    list_file: Path | None = None,
    json_out: str | None = None,
) -> None:
    """Compare and print.

    Args:
        prediction: output folder of ``label --format npz``.
        truth: the CSV of boxes, or the folder that holds it.
        options: how to compare.
        boxes: the CSV, where it isn't ``truth`` itself or ``boxes.csv`` in it.
        list_file: only these images, a name a line.
        json_out: file for the result as JSON; ``-`` prints it instead of the tables.
    """
    from wsss_rt.box_files import read_boxes
    from wsss_rt.evaluate_boxes import evaluate_boxes
    from wsss_rt.io.names import printable
    from wsss_rt.pairing import read_list, select_names

    path = _boxes_path(truth, boxes)
    true = read_boxes(path)
    if list_file is not None:
        chosen = select_names(true, read_list(list_file), missing=f"box in {printable(path)}")
        true = {image: true[image] for image in chosen}
    result = evaluate_boxes(prediction, true, options, whole=list_file is None)
    if json_out is not None:
        sides = {"prediction": printable(prediction), "truth": printable(path)}
        text = json.dumps(sides | result.as_dict(), indent=2, allow_nan=False)
        if json_out == "-":
            print(text)
            return
        from wsss_rt.io.atomic import write_atomic

        write_atomic(json_out, text.encode() + b"\n")
    _show(result)
    if json_out is not None:
        print(f"wrote {json_out}")


def _boxes_path(truth: Path, boxes: Path | None) -> Path:
    if not truth.is_dir():
        if boxes is not None and boxes != truth:
            raise UsageError(
                f"two files of boxes: {truth} and {boxes}", fix="give one, or the folder of the truth"
            )
        return truth
    if boxes is None:
        return truth / BOXES_FILE
    return boxes if boxes.is_file() else truth / boxes


def _show(result: BoxEvaluation) -> None:
    from wsss_rt.io.names import printable

    count = len(result.images)
    print_table(f"{count} image{'s' if count != 1 else ''}", ("measure", "%"), _top_rows(result.top))
    chosen = ", chosen on this truth" if result.chosen_here else ""
    print(f"boxes of the largest region above {result.top.threshold:.3f} of the maximum{chosen}")
    print()
    accuracies, thresholds = result.boxes.accuracies(), result.boxes.best_thresholds()
    rows = _box_rows(accuracies, [f"{threshold:.3f}" for threshold in thresholds], result.boxes.value())
    print_table("MaxBoxAccV2: all regions, the best threshold", ("IoU", "%", "threshold"), rows)
    if result.variant is not None:
        _show_variant(result.variant)
    for note in result.notes:
        print(f"note: {note}")
    for names, text in ((result.missing, "without prediction, left out"), (result.extra, "without boxes")):
        if names:
            more = "" if len(names) <= 3 else ", .."
            print(f"{len(names)} {text}: {', '.join(printable(name) for name in names[:3])}{more}")


def _show_variant(variant: VariantResult) -> None:

    print()
    title = f"as the {variant.name.value} repository counts, at {variant.top.threshold:.3f}"
    print_table(title, ("measure", "%"), _top_rows(variant.top))
    print()
    mean = sum(variant.box_accuracies) / len(variant.box_accuracies)
    rows = _box_rows(variant.box_accuracies, [f"{variant.top.threshold:.3f}"] * 3, mean)
    print_table("its MaxBoxAccV2: the first true box, no search", ("IoU", "%", "threshold"), rows)


def _top_rows(top: LocalizationAccuracy) -> list[list[str]]:
    named = (
        ("Top-1 classification", top.top_1_class),
        ("Top-5 classification", top.top_5_class),
        ("Top-1 localization", top.top_1),
        ("Top-5 localization", top.top_5),
        ("GT-known", top.gt_known),
    )
    return [[name, percent(value)] for name, value in named]


def _box_rows(accuracies: Iterable[float], thresholds: Sequence[str], mean: float) -> list[list[str]]:
    from wsss_rt.metrics.boxes import IOU_LIMITS

    rows = [
        [f"{limit}", percent(value), threshold]
        for limit, value, threshold in zip(IOU_LIMITS, accuracies, thresholds, strict=True)
    ]
    return [*rows, ["mean", percent(mean), ""]]
