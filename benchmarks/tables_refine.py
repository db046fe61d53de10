"""Tables of the CRF and the walk."""

from __future__ import annotations

from typing import Any

from table_text import machine_line, markdown, percent, percent_exact


def refine(result: dict[str, Any]) -> str:
    """The CRF's time beside pydensecrf's."""
    found = result["median"]
    ms, faster = found["ms"], found["times_faster"]
    rows = [["pydensecrf2, one thread", f"{ms['pydensecrf']:.0f}", "1.0", "–"]]
    agreement = percent_exact(found["labels_equal"])
    for name, text in (("ours_1_thread", "one thread"), ("ours_2_threads", "two threads")):
        rows.append([text, f"{ms[name]:.0f}", f"{faster[name]:.1f}", agreement])
    for stop, equal in sorted(found["stop_labels_equal"].items(), reverse=True):
        name = f"stop_{stop}"
        text = f"one thread, `--crf-stop {stop}`"
        rows.append([text, f"{ms[name]:.0f}", "–", percent_exact(equal["least"])])
    sizes = sorted({"x".join(str(side) for side in reversed(row["size"])) for row in result["images"]})
    classes = sorted({row["classes"] for row in result["images"]})
    note = (
        f"\n{len(result['images'])} {result['inputs']} of {', '.join(sizes)} px with {classes[0]} to "
        f"{classes[-1]} classes, preset {result['preset']}; medians over the images. Labels: of the worst "
        f"image, against pydensecrf2, for the early stop against all steps. No marginal differs by more than "
        f"{found['largest_difference']:.1e}. {machine_line(result, 'numba', 'pydensecrf2')}"
    )
    return markdown(["CRF", "ms an image", "times faster", "labels equal, %"], rows) + note


def refine_quality(result: dict[str, Any]) -> str:
    """mIoU before and after the CRF."""
    head = ["input", "before", "mctformer", "worse", "segmentation", "worse"]
    rows = []
    for row in result["rows"]:
        cells = [percent(row["miou"]["before"])]
        for preset in ("mctformer", "segmentation"):
            worse = f"{row['images_made_worse'][preset]} of {row['images']}"
            cells += [percent(row["miou"][preset]), worse]
        rows.append([f"{row['source']}, tokens of {row['token']} px, noise {row['noise']:g}", *cells])
    note = (
        '\nmIoU; "worse": images whose own mIoU fell. Probabilities are made from the true masks: shares of '
        f"the classes on tokens, with noise, drawn up. {machine_line(result, 'numba')}"
    )
    return markdown(head, rows) + note


def walk_quality(result: dict[str, Any]) -> str:
    """mIoU after the CRF, the walk and both."""
    rows = [
        [f"`--refine {row['refine']} {' '.join(row['options'])}".rstrip() + "`", percent(row["miou"])]
        for row in result["rows"]
    ]
    data = result["scenes"]
    note = (
        f"\n{data['count']} scenes of seed {data['seed']}, {result['model']}, tags given; an affinity net of "
        f"`psa-small` that saw {result['affinity']['images_seen']:,} crops. {machine_line(result, 'numba')}"
    )
    return markdown(["masks", "mIoU, %"], rows) + note


def refine_sizes(result: dict[str, Any]) -> str:
    """The CRF over sizes and classes, beside pydensecrf."""
    calls = ("numba, 1 thread", "numba, 2 threads", "pydensecrf")
    found: dict[tuple[int, int, int], dict[str, dict[str, Any]]] = {}
    for row in result["rows"]:
        height, width = row["size"]
        found.setdefault((height, width, row["classes"]), {})[row["call"]] = row
    rows = []
    for (height, width, classes), by_call in found.items():
        times = [by_call[call]["median_ms"] if call in by_call else None for call in calls]
        peer, best = times[2], min(value for value in times[:2] if value is not None)
        equal = [row["labels_equal"] for row in by_call.values()]
        cells = ["–" if value is None else f"{value:,.0f}" for value in times]
        faster = "–" if peer is None else f"{peer / best:.1f}"
        rows.append([f"{width}x{height}", str(classes), *cells, faster, percent_exact(min(equal))])
    note = (
        "\nMedian milliseconds of five calls, of two from a million pixels on; default parameters. "
        f"{machine_line(result, 'numba', 'pydensecrf2')}"
    )
    return markdown(["px", "classes", *calls, "times faster", "labels equal, %"], rows) + note
