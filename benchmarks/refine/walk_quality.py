"""mIoU of a localizer's masks on scenes, tags given: as they are, after the CRF, the walk, and both.

    python benchmarks/refine/walk_quality.py --affinity affinity.onnx --scenes DIR --work DIR [--limit 60]

The scenes are those of `wsss-rt scenes`, of a seed that neither net has seen. What --work holds already is
not labelled again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from commands import wsss_rt
from record import write_result

from wsss_rt.model_card import read_card

CRF = ("--crf-alpha", "12")
SHORT, LONG, HARD = (
    ("--walk-alpha", "12", "--walk-steps", "8"),
    ("--walk-alpha", "12"),
    ("--walk-alpha", "12", "--walk-steps", "32", "--walk-beta", "32"),
)
# folder, refiner, its options
CASES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("plain", "none", ()),
    ("crf12", "crf", CRF),
    ("walk", "walk", LONG),
    ("walk8", "walk", SHORT),
    ("a1", "walk", HARD),
    ("crfwalk", "crf+walk", CRF),
    ("crfwalk8", "crf+walk", (*CRF, *SHORT[2:])),
    ("walkcrf8", "walk+crf", SHORT),
    ("a2", "walk+crf", HARD),
)


def main() -> None:
    """Label, compare and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--affinity", type=Path, required=True)
    parser.add_argument("--scenes", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="scenes-v2")
    parser.add_argument("--limit", type=int, default=60)
    options = parser.parse_args()
    truth = options.scenes / "SegmentationClass"
    listed = options.work / "list.txt"
    listed.write_text("".join(f"{path.stem}\n" for path in sorted(truth.iterdir())[: options.limit]))
    rows = []
    for folder, refiner, settings in CASES:
        out, found = options.work / f"dev-{folder}", options.work / f"dev-{folder}.miou.json"
        if not (out / "run.json").exists():
            walk = ("--affinity", options.affinity) if "walk" in refiner else ()
            wsss_rt(
                "label", options.scenes / "JPEGImages", "--limit", options.limit, "--out", out, "--quiet",
                "--tags", options.scenes / "labels.csv", "--model", options.model, "--format", "png",
                "--refine", refiner, *settings, *walk,
            )  # fmt: skip
        wsss_rt("eval", out, truth, "--classes", "scenes", "--list", listed, "--json", found)
        rows.append({"refine": refiner, "options": settings, "miou": json.loads(found.read_text())["miou"]})
    scenes = json.loads((options.scenes / "scenes.json").read_text())
    training = read_card(options.affinity).training
    affinity = {key: training[key] for key in ("images_seen", "seconds") if key in training}
    content = {
        "rows": rows,
        "scenes": {"seed": scenes["seed"], "count": options.limit},
        "model": options.model,
        "affinity": affinity,
    }
    print(f"wrote {write_result('walk_quality', content)}")


if __name__ == "__main__":
    main()
