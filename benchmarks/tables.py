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
sys.path.insert(0, str(ROOT / "benchmarks"))
from tables_refine import refine, refine_quality, refine_sizes, walk_quality  # noqa: E402
from tables_speed import bench, cost, pipeline, quantize  # noqa: E402
from tables_training import methods, methods_maps, pipeline_stages, scenes, voc_animals  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "scenes": scenes,
    "voc_animals": voc_animals,
    "methods": methods,
    "methods_maps": methods_maps,
    "pipeline_stages": pipeline_stages,
    "refine": refine,
    "refine_quality": refine_quality,
    "refine_sizes": refine_sizes,
    "walk_quality": walk_quality,
    "pipeline": pipeline,
    "bench": bench,
    "quantize": quantize,
    "cost": cost,
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
