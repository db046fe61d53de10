"""Maps against exact truth: attention, PatchCAM, fused, each refined in two ways; tags given and predicted.

    python benchmarks/scenes_ablation.py --run runs/scenes [--model FILE] [--count 300] [--seed 424242]

All maps are measured in PyTorch on scenes of a seed that neither training nor validation has seen, with the
thresholds that validation found. The map that validation chose also goes the whole way: `wsss-rt export`,
`label`, `eval`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from commands import wsss_rt
from record import write_result


def label_and_evaluate(model: Path, work: Path, *, count: int, seed: int) -> dict[str, float]:
    """mIoU of an exported model's masks, with tags given and predicted."""
    scenes = work / f"scenes-{seed}-{count}"
    wsss_rt("scenes", "--out", scenes, "--count", count, "--seed", seed)
    found = {}
    for tags, given in (("given", ("--tags", scenes / "labels.csv")), ("predicted", ())):
        out, result = work / f"labels-{tags}", work / f"labels-{tags}.json"
        wsss_rt("label", scenes / "JPEGImages", "--out", out, "--model", model, "--quiet", *given)
        wsss_rt("eval", out, scenes / "SegmentationClass", "--classes", "scenes", "--json", result)
        found[tags] = json.loads(result.read_text())["miou"]
    return found


def measure(run: Path, *, count: int, seed: int) -> dict[str, Any]:
    """All maps in PyTorch."""
    from wsss_rt.training.checkpoints import load_run
    from wsss_rt.training.data.sources import SceneSource
    from wsss_rt.training.validation import evaluate_localization, map_kinds

    model, config = load_run(run)
    validation = config.quality["validation"]
    found = evaluate_localization(
        model,
        SceneSource(seed, count=count),
        kinds=[kind for kind in map_kinds(model) if kind.name in validation["background"]],
        spec=config.input,
        tag_thresholds=config.recommended.tag_thresholds,
        backgrounds=validation["background"],
    )
    rows = [
        {
            "map": kind,
            "background": background,
            "validation_miou": validation["miou"][kind],
            "given": found["miou"][kind],
            "predicted": found["miou_predicted"][kind],
            "iou_given": found["iou"][kind],
        }
        for kind, background in found["background"].items()
    ]
    return {
        "scenes": {"count": count, "seed": seed},
        "model": {
            "method": config.method,
            "backbone": config.model["backbone"],
            "images_seen": config.training["images_seen"],
            "training_seconds": config.training["seconds"],
        },
        "tag_map": found["map"],
        "rows": rows,
        "chosen_by_validation": max(rows, key=lambda row: row["validation_miou"])["map"],
    }


def main() -> None:
    """Measure one run and store the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=None, help="the run, exported already")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=424242)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--name", default="scenes")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="wsss-rt-"))
    work.mkdir(parents=True, exist_ok=True)
    result = measure(options.run, count=options.count, seed=options.seed)
    model = options.model
    if model is None:
        model = work / "model.onnx"
        model.unlink(missing_ok=True)
        wsss_rt("export", options.run, "--out", model)
    result["exported"] = label_and_evaluate(model, work, count=options.count, seed=options.seed)
    print(f"wrote {write_result(options.name, result)}")


if __name__ == "__main__":
    main()
