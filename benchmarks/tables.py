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


def pipeline(result: dict[str, Any]) -> str:
    """The whole labeller beside the peer, and the model alone beside plain products."""
    head = [
        "",
        "images/s",
        "times the peer",
        "processor, ms an image",
        "pixels equal, %",
        "worst image, %",
        "model, ms",
        "CRF, ms",
    ]
    names = {
        "float32": "`wsss-rt label`, float32",
        "bfloat16": "`wsss-rt label`, bfloat16",
        "peer": "peer, float32",
        "peer_bfloat16": "peer, bfloat16 by autocast",
    }
    rows = []
    for side, text in names.items():
        if side not in result["sides"]:
            continue
        found = result["sides"][side]
        equal = (found.get("pixels_equal_mean"), found.get("pixels_equal_least"))
        rows.append(
            [
                text,
                f"{found['images_per_second']:.2f}",
                f"{found['ratio_median']:.1f}",
                f"{found['processor_ms']:.0f}",
                *("–" if value is None else percent_exact(value) for value in equal),
                *(f"{found['stages_ms'][stage]:.0f}" for stage in ("infer", "refine")),
            ]
        )
    alone = "; ".join(
        f"{name} {entry['flops_per_second'] / 1e9:.0f} GFLOP/s, {100 * entry['share_of_products']:.0f} % of "
        "what plain matrix products reach"
        for name, entry in result["model_stage"].items()
    )
    note = (
        f"\n{result['photographs']} photographs of VOC's size, MCTformer-V2 on DeiT-S with seeded weights, "
        "scale 1 and mirror image, tags given, CRF; in turns of a few photographs, the median of the turns' "
        "ratios. Pixels: against the peer in float32. Stages: median of a photograph; those of "
        f"`wsss-rt label` overlap. The model alone, in OpenVINO: {alone}. "
        f"{machine_line(result, 'openvino', 'torch', 'pydensecrf2')}"
    )
    return markdown(head, rows) + note


def bench(result: dict[str, Any]) -> str:
    """What `wsss-rt bench` found."""
    head = [
        "engine",
        "start, s",
        "memory, MB",
        "model, ms",
        "% of products",
        "images/s",
        "speed-up",
        "equal, %",
    ]
    rows = []
    for engine in result["engines"]:
        model, labeller = (
            next(row for row in result["rows"] if row["key"].startswith(f"{scope}, {engine['name']},"))
            for scope in ("model", "pipeline")
        )
        speed_up = labeller["speed_up"]
        rows.append(
            [
                engine["name"],
                f"{sum(engine['seconds'].values()):.1f}",
                "–" if labeller["memory_bytes"] is None else f"{labeller['memory_bytes'] / 1e6:.0f}",
                f"{model['milliseconds']['p50']:.1f}",
                f"{100 * model['share_of_products']:.0f}",
                f"{labeller['images_per_second']:.1f}",
                "–" if speed_up is None else f"{speed_up:.2f}",
                percent_exact(1 - engine["agreement"]["masks"]["mean"]),
            ]
        )
    machine, versions = result["machine"], result["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("onnxruntime", "openvino") if name in versions)
    note = (
        f"\n`wsss-rt bench`, {result['model']['name']}, {result['images']['count']} "
        f"{result['images']['source']}: the model alone on one image, p50; images/s and speed-up of the "
        "whole labeller; masks against float32 ONNX Runtime. It took "
        f"{result['elapsed_seconds']:.0f} seconds. {machine['processor']}, {result['settings']['threads']} "
        f"threads; {named}.\n"
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
    "pipeline": pipeline,
    "bench": bench,
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
