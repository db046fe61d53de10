"""Every localizer, and the papers' own ablations, on scenes with equal budget: maps, boxes, time.

    python benchmarks/methods.py --work runs/methods [--seeds 2] [--images 14000] [--jobs 2] [--only NAME ...]

Each row is trained by `wsss-rt train METHOD --data scenes --recipe scenes-small` once per seed, --jobs at a
time on one thread each, and measured on scenes that neither training nor validation has seen. Runs that are
complete in --work are neither trained nor measured again, so an interrupted benchmark continues. Boxes are
judged on the scenes that show one class. Time of training is the processor's: a run may have had neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import torch
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
CLOSE_UPS, WARM_UP = 4 / 7, 4 / 35
# methods whose maps are of either sign
SIGNED = ("ts-cam", "token-refinement")


@dataclass(frozen=True)
class Row:
    """One training: a method and how it differs from its defaults.

    Attributes:
        first: options of a first stage, which then gets half of the images.
        halved: half of the images; what those rows are to be held against that pay for two views.
    """

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    first: dict[str, Any] | None = None
    halved: bool = False


# The official weight of ACR's consistency, 100, is for a pretrained model of 577 tokens. From scratch it
# makes attention uniform before any class is learned; the row at the end shows that.
GENTLE = 0.3

ROWS = (
    Row("mctformer-v2", "mctformer-v2"),
    # two views cost two passes: half as many images keep the budget equal
    Row("mctformer-v2, half the images", "mctformer-v2", halved=True),
    Row("mctformer-v2 + ACR consistency", "mctformer-v2", {"consistency": "acr", "alpha": GENTLE}),
    Row("ts-cam", "ts-cam"),
    Row("token-refinement", "token-refinement", {"loss": "soft_margin"}),
    Row(
        "token-refinement, two stages",
        "token-refinement",
        {"loss": "soft_margin", "stage": "cam"},
        first={"loss": "soft_margin", "stage": "tpsm"},
    ),
    Row("mctformer-v1", "mctformer-v1"),
    Row("mctformer-plus", "mctformer-plus"),
    Row("acr", "acr", {"alpha": GENTLE}),
    Row("mctformer-v2 + ACR, official weight", "mctformer-v2", {"consistency": "acr"}),
)


def parts(row: Row) -> int:
    """Into how many parts the images are divided: by two views of each, or by two stages."""
    paired = row.method == "acr" or row.options.get("consistency") is not None
    return 2 if paired or row.first is not None or row.halved else 1


def train(row: Row, seed: int, images: int, out: Path) -> None:
    """Train unless the run is there and complete."""
    count = images // parts(row)
    # the recipe's share of close-ups and of warm-up, whatever the number of images
    settings = (
        f"data.close_ups={round(count * CLOSE_UPS)}",
        f"optim.warmup_images={round(count * WARM_UP)}",
    )
    if row.first is not None:
        first = out.with_name(out.name + "-first")
        _train(row.method, row.first, seed, count, first, *settings)
        settings = (*settings, f"model.first_stage={first / 'weights.safetensors'}")
    _train(row.method, row.options, seed, count, out, *settings)


def _train(method: str, options: dict[str, Any], seed: int, images: int, out: Path, *settings: str) -> None:
    told = out / "cpu_seconds.json"
    if told.exists():
        return
    settings += tuple(f"model.options.{name}={json.dumps(value)}" for name, value in options.items())
    words = ["train", method, "--data", "scenes", "--recipe", "scenes-small", "--seed", str(seed)]
    words += ["--images", str(images), "--out", str(out)]
    words += [word for entry in settings for word in ("--set", entry)]
    print("$ wsss-rt " + " ".join(words), flush=True)
    log = out.with_name(out.name + ".log")
    with log.open("ab") as lines:
        process = subprocess.Popen(
            [sys.executable, "-m", "wsss_rt", *words],
            stdout=lines,
            stderr=lines,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"wsss-rt train {method} failed: see {log}")
    told.write_text(json.dumps(usage.ru_utime + usage.ru_stime))


def cpu_seconds(row: Row, out: Path) -> float:
    """Processor seconds of a run, validation included."""
    folders = [out] if row.first is None else [out.with_name(out.name + "-first"), out]
    return float(sum(json.loads((folder / "cpu_seconds.json").read_text()) for folder in folders))


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


def latencies(runs: list[Path]) -> list[float]:
    """Median milliseconds of ``localize`` on one image, in PyTorch on one thread; all runs in turns."""
    images = torch.zeros(1, 3, LATENCY_SIDE, LATENCY_SIDE)
    models = [load_run(run)[0] for run in runs]
    seconds: list[list[float]] = [[] for _ in models]
    with torch.no_grad():
        for turn in range(LATENCY_RUNS + 1):
            for model, spent in zip(models, seconds, strict=True):
                assert isinstance(model, Localizer)
                begun = time.perf_counter()
                model.localize(images)
                if turn:
                    spent.append(time.perf_counter() - begun)
    return [1000 * median(spent) for spent in seconds]


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
        "images_seen": config.training["images_seen"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def measure_rectified(run: Path, count: int) -> dict[str, Any]:
    """Signed maps cut at 0 and divided by their peak, in place of min-max; the threshold by other scenes."""
    model, config = load_run(run)
    setattr(model, "map_rule", replace(model.map_rule, normalise="peak"))  # noqa: B010 - a class variable
    settings = {"spec": config.input, "tag_thresholds": config.recommended.tag_thresholds}
    chosen = evaluate_localization(model, SceneSource(SEED + 1, count=100), **settings)["background"]
    found = evaluate_localization(model, SceneSource(SEED, count=count), backgrounds=chosen, **settings)
    return {"maps, rectified": found["miou"]["maps"]}


def measured(row: Row, run: Path, count: int) -> dict[str, Any]:
    """All of a run, or what was found before."""
    found = _kept(run / f"measured-{count}.json", lambda: measure(run, count))
    if row.method in SIGNED:
        found["miou"] |= _kept(run / f"rectified-{count}.json", lambda: measure_rectified(run, count))
    return found | {"cpu_seconds": cpu_seconds(row, run)}


def _kept(file: Path, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if not file.exists():
        file.write_text(json.dumps(find()))
    return dict(json.loads(file.read_text()))


def spread(values: list[float]) -> dict[str, float | None]:
    """Mean and standard deviation over seeds."""
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None}


def is_complete(run: Path) -> bool:
    """Whether a run has ended."""
    return (run / "cpu_seconds.json").exists()


def folder_of(row: Row, seed: int, work: Path) -> Path:
    """The run of a row and a seed."""
    return work / f"{row.name.replace(' ', '').replace(',', '-')}-{seed}"


def main() -> None:
    """Train, measure and store the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=14000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[row.name for row in ROWS])
    parser.add_argument("--train-only", action="store_true", help="leave measuring to another call")
    parser.add_argument("--measure-only", action="store_true", help="of the runs that are complete")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    chosen = [row for row in ROWS if row.name in options.only]
    with ThreadPoolExecutor(options.jobs) as pool:
        seeds = () if options.measure_only else range(options.seeds)
        # all rows of a seed before the next seed: what is there early can be compared
        jobs = [
            pool.submit(train, row, seed, options.images, folder_of(row, seed, options.work))
            for seed in seeds
            for row in chosen
        ]
        for job in jobs:
            job.result()
    if options.train_only:
        return
    torch.set_num_threads(1)
    rows = []
    for row in chosen:
        folders = [folder_of(row, seed, options.work) for seed in range(options.seeds)]
        runs = [measured(row, folder, options.count) for folder in folders if is_complete(folder)]
        if not runs:
            continue
        rows.append(
            {
                "name": row.name,
                "method": row.method,
                "options": row.options,
                "miou": {kind: spread([run["miou"][kind] for run in runs]) for kind in runs[0]["miou"]},
                "tag_map": spread([run["tag_map"] for run in runs]),
                "gt_known": spread([run["boxes"]["gt_known"] for run in runs]),
                "max_box_acc_v2": spread([run["boxes"]["max_box_acc_v2"] for run in runs]),
                "cpu_seconds": mean(run["cpu_seconds"] for run in runs),
                "runs": runs,
            }
        )
    times = latencies([folder_of(row, 0, options.work) for row in chosen])
    for found, milliseconds in zip(rows, times, strict=True):
        found["latency_ms"] = milliseconds
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
