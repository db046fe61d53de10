"""Every localizer, and the papers' own ablations, on scenes with equal budget: maps, boxes, time.

    python benchmarks/methods.py --work runs/methods [--seeds 3] [--images 30000] [--only NAME ...]

Each row is trained by `wsss-rt train METHOD --data scenes --recipe scenes-small` once per seed, and measured
on scenes that neither training nor validation has seen. Runs that are complete in --work are not trained
again, so an interrupted measurement continues. Boxes are judged on the scenes that show one class.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch
from commands import wsss_rt
from record import write_result

from wsss_rt.localize import prepare_passes
from wsss_rt.metrics import (
    MaxBoxAccV2,
    TopLocalization,
    box_overlaps,
    class_rank,
    find_regions,
    resize_bilinear,
    stretch,
)
from wsss_rt.model_card import InputSpec
from wsss_rt.training.checkpoints import load_run
from wsss_rt.training.data.sources import Sample, SceneSource
from wsss_rt.training.models import Localizer
from wsss_rt.training.validation import MapKind, evaluate_localization, map_kinds

SEED = 525252  # of the scenes that are measured
LATENCY_SIDE, LATENCY_RUNS = 224, 20


@dataclass(frozen=True)
class Row:
    """One training: a method and how it differs from its defaults."""

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)


ROWS = (
    Row("mctformer-v1", "mctformer-v1"),
    Row("mctformer-v2", "mctformer-v2"),
    # two views cost two passes: half as many images keep the budget equal
    Row("mctformer-v2 + ACR consistency", "mctformer-v2", {"consistency": "acr"}),
    Row("mctformer-plus", "mctformer-plus"),
    Row("ts-cam", "ts-cam"),
    Row("token-refinement", "token-refinement", {"loss": "soft_margin"}),
    Row("acr", "acr"),
)


def views(row: Row) -> int:
    """Forward passes per training image."""
    return 2 if row.method == "acr" or row.options.get("consistency") else 1


def train(row: Row, seed: int, images: int, out: Path) -> None:
    """Train unless the run is there and complete."""
    options = [
        word
        for name, value in row.options.items()
        for word in ("--set", f"model.options.{name}={json.dumps(value)}")
    ]
    wsss_rt(
        "train", row.method, "--data", "scenes", "--recipe", "scenes-small", "--seed", seed,
        "--images", images // views(row), "--out", out, *options,
    )  # fmt: skip


def boxes_of(mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """True boxes (K, 4) of a scene that shows one class: one per connected body."""
    return find_regions(mask > 0).boxes


def localize(model: Localizer, sample: Sample, spec: InputSpec, kind: MapKind) -> tuple[Any, Any]:
    """Scores (C,) and maps (C, h, w) of one image, one pass."""
    one = prepare_passes(sample.image, spec, scales=(1.0,), flip=False)[0]
    with torch.no_grad():
        found = model.localize_each(torch.from_numpy(one.images), [kind.options])[0]
    return found.scores[0].numpy(), found.maps[0].numpy()


def measure_boxes(model: Localizer, scenes: SceneSource, spec: InputSpec, kind: MapKind) -> dict[str, float]:
    """GT-known at its best threshold, and MaxBoxAccV2, of the scenes that show one class."""
    top, boxes = TopLocalization(), MaxBoxAccV2()
    for index in range(scenes.count or 0):
        sample = scenes.load(index, mask=True)
        if len(sample.tags) != 1 or sample.mask is None:
            continue
        label = sample.tags[0]
        scores, maps = localize(model, sample, spec, kind)
        pixels = stretch(resize_bilinear(maps[label], *sample.mask.shape))
        overlaps = box_overlaps(pixels, boxes_of(sample.mask), boxes.thresholds)
        top.add(overlaps, class_rank(scores, label))
        boxes.add(overlaps)
    return {"gt_known": top.best().gt_known, "max_box_acc_v2": boxes.value(), "images": boxes.images}


def latency(model: Localizer) -> float:
    """Median milliseconds of ``localize`` on one image, in PyTorch on the CPU."""
    images = torch.zeros(1, 3, LATENCY_SIDE, LATENCY_SIDE)
    seconds = []
    with torch.no_grad():
        for _ in range(LATENCY_RUNS):
            begun = time.perf_counter()
            model.localize(images)
            seconds.append(time.perf_counter() - begun)
    return 1000 * median(seconds)


def measure(run: Path, count: int) -> dict[str, Any]:
    """All maps of one run at the thresholds of its validation, and the boxes of the map that this chose."""
    model, config = load_run(run)
    assert isinstance(model, Localizer)
    validation, scenes = config.quality["validation"], SceneSource(SEED, count=count)
    kinds = [kind for kind in map_kinds(model) if kind.name in validation["background"]]
    found = evaluate_localization(
        model,
        scenes,
        kinds=kinds,
        spec=config.input,
        tag_thresholds=config.recommended.tag_thresholds,
        backgrounds=validation["background"],
    )
    chosen = max(kinds, key=lambda kind: validation["miou"][kind.name])
    return {
        "tag_map": found["map"],
        "miou": found["miou"],
        "miou_predicted": found["miou_predicted"],
        "chosen": chosen.name,
        "boxes": measure_boxes(model, scenes, config.input, chosen),
        "training_seconds": config.training["seconds"],
        "images_seen": config.training["images_seen"],
        "latency_ms": latency(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def spread(values: list[float]) -> dict[str, float | None]:
    """Mean and standard deviation over seeds."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}


def main() -> None:
    """Train, measure and store the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=30000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--only", nargs="*", default=[row.name for row in ROWS])
    options = parser.parse_args()
    rows = []
    for row in (row for row in ROWS if row.name in options.only):
        runs = []
        for seed in range(options.seeds):
            out = options.work / f"{row.name.replace(' ', '')}-{seed}"
            train(row, seed, options.images, out)
            runs.append(measure(out, options.count))
        rows.append(
            {
                "name": row.name,
                "method": row.method,
                "options": row.options,
                "miou": {kind: spread([run["miou"][kind] for run in runs]) for kind in runs[0]["miou"]},
                "tag_map": spread([run["tag_map"] for run in runs]),
                "gt_known": spread([run["boxes"]["gt_known"] for run in runs]),
                "max_box_acc_v2": spread([run["boxes"]["max_box_acc_v2"] for run in runs]),
                "latency_ms": median(run["latency_ms"] for run in runs),
                "training_seconds": mean(run["training_seconds"] for run in runs),
                "runs": runs,
            }
        )
    path = write_result(
        "methods",
        {
            "budget": {"images": options.images, "seeds": options.seeds, "recipe": "scenes-small"},
            "scenes": {"count": options.count, "seed": SEED},
            "rows": rows,
        },
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
