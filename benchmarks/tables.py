"""Writes the README's tables from benchmarks/results, so that no figure is typed by hand.

    python benchmarks/tables.py           # rewrite README.md
    python benchmarks/tables.py --check   # fail where README.md is stale

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


def quantize(result: dict[str, Any]) -> str:
    """int8 beside float32 and bfloat16."""
    head = ["model, engine", "mIoU", "processor ms, median", "least", "times bfloat16's speed"]
    rows, sizes = [], []
    miou = result["quality"]["miou"]
    for name, found in result["processor"].items():
        sizes.append(f"{name} at {'x'.join(map(str, found['size']))} px")
        ms = found["median_ms"]
        for engine in sorted(ms, key=lambda engine: -ms[engine]):
            rows.append(
                [
                    f"{name}, {engine}",
                    percent(miou.get(engine)) if name == "scenes-v2" else "–",
                    f"{ms[engine]:.1f}",
                    f"{found['least_ms'][engine]:.1f}",
                    f"{ms['openvino bfloat16'] / ms[engine]:.2f}",
                ]
            )
    made = result["export"]["scenes-v2"]
    note = (
        f"\nmIoU: {result['quality']['count']} scenes of seed {result['quality']['seed']}, tags given, "
        f"no CRF. Time: the processor's for one pass on one thread, all engines in turns, on a machine that "
        f"other work kept busy; {' and '.join(sizes)}. Of scenes-v2 {made['layers']} layers run in int8, "
        f"{len(made['in_float'])} with weights stay in float; {made['bytes'] / 1e6:.1f} MB in place of "
        f"{made['bytes_float32'] / 1e6:.1f}. {machine_line(result)}"
    )
    return markdown(head, rows) + note


def percent_exact(value: float) -> str:
    """A share as percent with two decimals, cut so that less than all never reads as 100."""
    return f"{int(1e4 * value) / 1e2:.2f}"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "scenes": scenes,
    "voc_animals": voc_animals,
    "refine": refine,
    "refine_quality": refine_quality,
    "quantize": quantize,
}


def render(text: str) -> str:
    """README text with every marked table made anew."""

    def fill(found: re.Match[str]) -> str:
        result = json.loads((RESULTS / f"{found[2]}.json").read_text())
        return found[1] + "\n" + TABLES[found[2]](result) + "\n" + found[3]

    return MARKED.sub(fill, text)


def main() -> None:
    """Rewrite or check README.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    readme = ROOT / "README.md"
    text = readme.read_text()
    fresh = render(text)
    if parser.parse_args().check:
        if fresh != text:
            sys.exit("README.md is stale: run python benchmarks/tables.py")
        return
    readme.write_text(fresh)


if __name__ == "__main__":
    main()
