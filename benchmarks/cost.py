"""What segmenters cost: multiply-accumulates beside published ones, and Shrunk's time beside SegViT's.

    python benchmarks/cost.py [--runs 3]

Runs `wsss-rt bench --count` as a user does. The two large models are timed in turns, in PyTorch on random
weights, on one image: what the weights are does not change how long they take.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from commands import wsss_rt
from record import write_result

LARGE, BASE = "vit_large_patch16_224", "vit_base_patch16_224"


@dataclass(frozen=True)
class Row:
    """A published figure: models on one backbone, size and number of classes, GMAC each."""

    backbone: str
    side: int
    classes: int
    published: dict[str, float]


# Zhang et al., NeurIPS 2022, as their repository lists them; of PASCAL Context with 59 and with 60 classes
ROWS = (
    Row(LARGE, 640, 150, {"segvit": 637.9, "segvit-shrunk": 373.5}),
    Row(BASE, 512, 150, {"segvit": 120.9}),
    Row(LARGE, 512, 171, {"segvit": 383.9, "segvit-shrunk": 224.8}),
    Row(LARGE, 480, 59, {"segvit": 321.6}),
    Row(LARGE, 480, 60, {"segvit-shrunk": 186.9}),
)


def count(row: Row, *, runs: int) -> list[dict[str, Any]]:
    """The command's own rows, with the published figure."""
    models = [word for model in row.published for word in ("--count", model)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "cost.json"
        wsss_rt(
            "bench", *models, "--backbone", row.backbone, "--img-size", row.side, "--classes", row.classes,
            "--time", runs, "--json", out,
        )  # fmt: skip
        found = json.loads(out.read_text())
    return [
        {
            "backbone": row.backbone,
            "published_gmac": row.published[entry["model"]],
            **{key: entry[key] for key in ("model", "classes", "size", "macs", "parameters", "seconds")},
        }
        for entry in found
    ]


def main() -> None:
    """Count, time the first two, and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    rows = [entry for row in ROWS for entry in count(row, runs=options.runs if row is ROWS[0] else 0)]
    path = write_result("cost", {"rows": rows, "runs": options.runs, "threads": torch.get_num_threads()})
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
