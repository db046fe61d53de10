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


def machine_line(result: dict[str, Any]) -> str:
    """Where and with what a result was measured."""
    found = result["environment"]
    versions = found["versions"]
    named = ", ".join(
        f"{name} {versions[name]}" for name in ("onnxruntime", "openvino", "torch") if name in versions
    )
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
    names = list(result["eval"]["given"]["classes"])
    head = ["tags", *names, "seconds to label"]
    rows = []
    for mode in ("given", "predicted"):
        found = result["eval"][mode]["classes"]
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


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {"scenes": scenes, "voc_animals": voc_animals}


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
