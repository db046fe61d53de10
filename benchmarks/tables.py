"""Writes the tables of README.md and docs/ from benchmarks/results, so that no figure is typed by hand.

    python benchmarks/tables.py           # rewrite the pages
    python benchmarks/tables.py --check   # fail where one is stale

A table stands between ``<!-- table:NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def percent(value: float | None) -> str:
    """A share as percent with one decimal; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f}"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A pipe table, first column to the left, the others to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def machine_line(result: dict[str, Any], *packages: str) -> str:
    """Where and with what a result was measured; ``packages`` take the place of the engines."""
    found = result["environment"]
    versions = found["versions"]
    shown = packages or ("onnxruntime", "openvino", "torch")
    named = ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)
    return f"{found['cpu']}, {found['cores']} cores; Python {versions['python']}, {named}.\n"


def scenes(result: dict[str, Any]) -> str:
    """The ablation on scenes."""
    head = ["map", "background", "validation mIoU", "mIoU, tags given", "mIoU, tags predicted"]
    rows = []
    for row in result["rows"]:
        name = f"**{row['map']}**" if row["map"] == result["chosen_by_validation"] else row["map"]
        rows.append(
            [
                name,
                f"{row['background']:.2f}",
                percent(row["validation_miou"]),
                percent(row["given"]),
                percent(row["predicted"]),
            ]
        )
    model, data = result["model"], result["scenes"]
    note = (
        f"\n{data['count']} scenes of seed {data['seed']}, no CRF; {model['method']} on {model['backbone']}, "
        f"{model['images_seen']:,} training scenes, tag mAP {percent(result['tag_map'])}. "
        f"Bold: what validation chose; exported and labelled by `wsss-rt label` it reaches "
        f"{percent(result['exported']['given'])} and {percent(result['exported']['predicted'])}. "
        f"{machine_line(result)}"
    )
    return markdown(head, rows) + note


def voc_animals(result: dict[str, Any]) -> str:
    """IoU on photographs."""
    names = [entry["name"] for entry in result["eval"]["given"]["classes"]]
    head = ["tags", *names, "seconds to label"]
    rows = []
    for mode in ("given", "predicted"):
        found = {entry["name"]: entry for entry in result["eval"][mode]["classes"]}
        rows.append(
            [
                mode,
                *(percent(found[name]["iou"]) for name in names),
                f"{result['seconds'][f'label_{mode}']:.0f}",
            ]
        )
    model = result["model"]
    note = (
        f"\n{result['photographs']} photographs; {model['method']} on {model['backbone']} from random "
        f"weights, {model['images_seen']:,} images seen in {result['seconds']['train'] / 60:.0f} minutes. "
        f"{machine_line(result)}"
    )
    return markdown(head, rows) + note


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


def spread(entry: dict[str, float | None]) -> str:
    """Mean and standard deviation over seeds, as percent."""
    low = "" if entry["std"] is None else f" ± {percent(entry['std'])}"
    return percent(entry["mean"]) + low


def methods(result: dict[str, Any]) -> str:
    """Every method at equal budget."""
    head = [
        "method",
        "best map",
        "mIoU",
        "GT-known",
        "MaxBoxAccV2",
        "tag mAP",
        "training, CPU s",
        "ms an image",
    ]
    rows = []
    for row in result["rows"]:
        best = max(row["miou"], key=lambda kind: row["miou"][kind]["mean"])
        cells = [spread(row["miou"][best]), spread(row["gt_known"]), spread(row["max_box_acc_v2"])]
        times = [f"{row['cpu_seconds']:.0f}", f"{row['latency_ms']:.1f}"]
        rows.append([row["name"], best, *cells, spread(row["tag_map"]), *times])
    budget, data = result["budget"], result["scenes"]
    boxes = result["rows"][0]["runs"][0]["boxes"]["images"]
    views = f"{budget['images']:,} training views of scenes a run (a pair counts twice)"
    note = (
        f"\n{views}, {budget['seeds']} seeds, mean ± standard deviation; {data['count']} unseen scenes of "
        f"seed {data['seed']}, tags given, no CRF. The best map is the best on them; boxes are judged by the "
        f"map that validation chose, on the {boxes} scenes of one class. Time an image: PyTorch, one pass of "
        f"224 px, one thread. {machine_line(result, 'torch', 'timm')}"
    )
    return markdown(head, rows) + note


def methods_maps(result: dict[str, Any]) -> str:
    """The maps of every method, with and without refinement."""
    refinements = ("", "+affinity", "+similarity")
    head = ["method", "map", "as it is", "+ affinity", "+ similarity"]
    rows = []
    for row in result["rows"]:
        for name in dict.fromkeys(kind.partition("+")[0] for kind in row["miou"]):
            cells = [row["miou"].get(name + suffix) for suffix in refinements]
            rows.append([row["name"], name, *("–" if cell is None else spread(cell) for cell in cells)])
    return markdown(head, rows)


def percent_exact(value: float) -> str:
    """A share as percent with two decimals, cut so that less than all never reads as 100."""
    return f"{int(1e4 * value) / 1e2:.2f}"


def cost(result: dict[str, Any]) -> str:
    """Multiply-accumulates beside published ones."""
    head = ["model", "backbone", "px", "classes", "GMAC", "published", "seconds a pass"]
    rows = [
        [
            row["model"],
            row["backbone"].removesuffix("_patch16_224"),
            f"{row['size'][0]}",
            f"{row['classes']}",
            f"{row['macs'] / 1e9:.1f}",
            f"{row['published_gmac']:.1f}",
            "–" if row["seconds"] is None else f"{row['seconds']:.2f}",
        ]
        for row in result["rows"]
    ]
    full, shrunk = result["rows"][:2]
    note = (
        f"\nShrunk over SegViT, {full['size'][0]} px: {shrunk['macs'] / full['macs']:.3f} of the operations, "
        f"{shrunk['seconds'] / full['seconds']:.3f} of the time: medians of {result['runs']} passes in turn, "
        f"float32 PyTorch, {result['threads']} threads. {machine_line(result, 'torch', 'timm')}"
    )
    return markdown(head, rows) + note


# stages of the pipeline in their order, and the masks whose mIoU stands in each column
PIPELINE_ROWS = (
    ("localizer", "localizer", "held-given", "held-predicted"),
    ("+ CRF", None, "held-crf", None),
    ("+ walk", None, "held-walk", None),
    ("+ walk, then CRF", None, "held-walk+crf", None),
    ("pseudo-labels", "pseudo", "held-labels", "held-pseudo"),
    ("segmenter `segvit`", None, None, "segvit"),
    ("segmenter `segvit-shrunk`", None, None, "segvit-shrunk"),
    ("segmenter `conv-head`", None, None, "conv-head"),
)


def pipeline_stages(result: dict[str, Any]) -> str:
    """mIoU after each stage of examples/pipeline.sh."""
    settings, miou = result["settings"], result["miou"]
    miou = {**miou, "held-labels": miou[f"held-{settings['LABELS']}"]}
    head = ["after", "training scenes, tags given", "held out, tags given", "held out, no tags"]
    rows = [
        [name, *("–" if key is None else percent(miou[key]) for key in keys)]
        for name, *keys in PIPELINE_ROWS
        if all(key is None or key in miou for key in keys)
    ]
    note = (
        f"\nmIoU, %. {settings['TRAIN_SCENES']} training scenes (the localizer's masks and the affinity net: "
        f"the first {settings['AFFINITY_SCENES']}), {settings['HELD_OUT']} held out; a localizer of "
        f"{int(settings['LOCALIZER_IMAGES']):,} images, pseudo-labels by {settings['LABELS']}, "
        f"segmenters of {int(settings['STUDENT_IMAGES']):,} images. All stages: "
        f"{result['total']['processor'] / 60:.1f} minutes of one processor, "
        f"{result['total']['wall'] / 60:.1f} on the clock of a machine that other work kept busy. "
        f"{machine_line(result, 'torch', 'onnxruntime')}"
    )
    return markdown(head, rows) + note


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "cost": cost,
    "pipeline_stages": pipeline_stages,
    "scenes": scenes,
    "voc_animals": voc_animals,
    "refine": refine,
    "refine_quality": refine_quality,
    "walk_quality": walk_quality,
    "methods": methods,
    "methods_maps": methods_maps,
}


# tables of a result that has several
SOURCES = {"methods_maps": "methods"}


def render(text: str) -> str:
    """A page's text with every marked table made anew."""

    def fill(found: re.Match[str]) -> str:
        name = SOURCES.get(found[2], found[2])
        result = json.loads((RESULTS / f"{name}.json").read_text())
        return found[1] + "\n" + TABLES[found[2]](result) + "\n" + found[3]

    return MARKED.sub(fill, text)


def main() -> None:
    """Rewrite or check the pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text()
        fresh = render(text)
        if fresh == text:
            continue
        if check:
            sys.exit(f"{page.relative_to(ROOT)} is stale: run python benchmarks/tables.py")
        page.write_text(fresh)


if __name__ == "__main__":
    main()
