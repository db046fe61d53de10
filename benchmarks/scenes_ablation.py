"""Maps against exact truth: attention alone, PatchCAM, fused, refined; tags given and predicted.

    python benchmarks/scenes_ablation.py --run runs/scenes [--count 300] [--seed 424242] [--jobs 2]

Every row goes the whole way: export with that map and with the background threshold that validation found
for it, `wsss-rt label`, `wsss-rt eval`, on scenes of a seed that neither training nor validation has seen.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from commands import wsss_rt
from record import write_result

ORDER = ("attention", "attention+affinity", "patchcam", "patchcam+affinity", "fused", "fused+affinity")


def measure(model: Path, scenes: Path, work: Path, *, tags: bool) -> dict[str, Any]:
    """Label the scenes and compare with their masks."""
    out = work / f"labels-{model.stem}-{'given' if tags else 'predicted'}"
    given = ("--tags", scenes / "labels.csv") if tags else ()
    wsss_rt(
        "label", scenes / "JPEGImages", "--out", out, "--model", model, "--format", "png", "--quiet", *given
    )
    result = work / f"{out.name}.json"
    wsss_rt("eval", out, scenes / "SegmentationClass", "--classes", "scenes", "--json", result)
    found = json.loads(result.read_text())
    return {"miou": found["miou"], "iou": found.get("iou")}


def main() -> None:
    """Measure all maps of one run and store the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=424242)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--jobs", type=int, default=1, help="maps measured at a time")
    parser.add_argument("--name", default="scenes")
    options = parser.parse_args()
    config = json.loads((options.run / "config.json").read_text())
    validation = config["quality"]["validation"]
    work = options.work or Path(tempfile.mkdtemp(prefix="wsss-rt-"))
    work.mkdir(parents=True, exist_ok=True)
    scenes = work / f"scenes-{options.seed}-{options.count}"
    wsss_rt("scenes", "--out", scenes, "--count", options.count, "--seed", options.seed)

    def row(kind: str) -> dict[str, Any]:
        attention_type, _, refined = kind.partition("+")
        model = work / f"{kind.replace('+', '-')}.onnx"
        model.unlink(missing_ok=True)
        wsss_rt(
            "export", options.run, "--out", model, "--attention-type", attention_type,
            "--affinity" if refined else "--no-affinity", "--background", validation["background"][kind],
        )  # fmt: skip
        return {
            "map": kind,
            "background": validation["background"][kind],
            "validation_miou": validation["miou"][kind],
            "given": measure(model, scenes, work, tags=True),
            "predicted": measure(model, scenes, work, tags=False),
        }

    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(row, [kind for kind in ORDER if kind in validation["miou"]]))
    best = max(rows, key=lambda row: row["validation_miou"])
    path = write_result(
        options.name,
        {
            "scenes": {"count": options.count, "seed": options.seed},
            "model": {
                "method": config["method"],
                "backbone": config["model"]["backbone"],
                "images_seen": config["training"]["images_seen"],
                "training_seconds": config["training"]["seconds"],
                "tag_map": validation["map"],
            },
            "rows": rows,
            "chosen_by_validation": best["map"],
        },
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
