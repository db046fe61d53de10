"""The dense CRF beside pydensecrf, image by image in one process: time and agreement.

    python benchmarks/refine/compare.py [--data ../shared/data/voc_animals] [--count 20] [--rows FILE]

Without photographs it takes scenes; without pydensecrf2 (extra ``crf-reference``) it gives no ratio. Every
repetition runs all candidates in turn, so that a busy machine is busy for all. A sample during which the host
took time from this virtual machine (steal in /proc/stat) counts only where no other is to be had; pydensecrf,
whose whole call is long, is timed step by step for that, and its time is the sum of the steps' medians. With
``--rows`` the images measured so far stand in a file, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsss_rt.refine import dense_crf as module
from wsss_rt.refine.crew import Crew
from wsss_rt.refine.dense_crf import dense_crf
from wsss_rt.refine.lattice import build_lattice
from wsss_rt.refine.params import LEAST_PROBABILITY, PRESETS, CrfParams

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from record import write_result  # noqa: E402

from refine.inputs import PHOTOGRAPHS, noisy, photographs, present, scenes  # noqa: E402

STOPS = (0.01, 0.001)


class Samples:
    """Times of named pieces of work, of which undisturbed ones are preferred."""

    def __init__(self) -> None:
        self._times: defaultdict[str, list[tuple[bool, float]]] = defaultdict(list)

    def time(self, name: str, function: Callable[[], Any]) -> Any:
        """Run and keep the wall time in ms."""
        stolen, begun = steal(), time.perf_counter()
        result = function()
        elapsed = (time.perf_counter() - begun) * 1e3
        self._times[name].append((steal() != stolen, elapsed))
        return result

    def median(self, name: str) -> float:
        """Over undisturbed samples, or over the faster half where all were disturbed."""
        times = self._times[name]
        clean = [value for disturbed, value in times if not disturbed]
        return statistics.median(clean or sorted(value for _, value in times)[: len(times) // 2 + 1])

    def undisturbed(self) -> dict[str, str]:
        """How many of how many samples, by name."""
        return {
            name: f"{sum(not disturbed for disturbed, _ in times)} of {len(times)}"
            for name, times in self._times.items()
        }


def steal() -> int:
    """Ticks that the host took from this machine so far."""
    return int(Path("/proc/stat").read_text().split(maxsplit=9)[8])


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="mctformer")
    parser.add_argument("--rows", type=Path, help="keep the rows here and go on from them")
    options = parser.parse_args()
    there = options.data.is_dir()
    samples = photographs(options.data, options.count, fine=True) if there else scenes(options.count)
    rows = []
    if options.rows is not None and options.rows.is_file():
        rows = [json.loads(line) for line in options.rows.read_text().splitlines()]
    measured = {row["name"] for row in rows}
    for seed, (name, image, mask) in enumerate(samples):
        if name in measured:
            continue
        row = {"name": name, "size": list(mask.shape), "classes": len(present(mask))}
        row |= measure(image, noisy(mask, seed), PRESETS[options.preset], options.repeats)
        rows.append(row)
        print(row, flush=True)
        if options.rows is not None:
            with options.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
    result = {
        "inputs": "photographs" if there else "scenes",
        "preset": options.preset,
        "repeats": options.repeats,
        "images": rows,
        "median": medians(rows),
    }
    print(f"wrote {write_result('refine', result)}")


def measure(
    image: NDArray[np.uint8], given: NDArray[np.float32], params: CrfParams, repeats: int
) -> dict[str, Any]:
    """Times of one image, its profile, and agreement with pydensecrf and of the early stop."""
    samples, wanted = Samples(), None
    reference = importlib.util.find_spec("pydensecrf") is not None
    marginals = dense_crf(image, given, params)
    labels = marginals.argmax(axis=0)
    early = {stop: replace(params, stop=stop) for stop in STOPS}
    for _ in range(repeats):
        samples.time("ours_1_thread", lambda: dense_crf(image, given, params))
        samples.time("ours_2_threads", lambda: dense_crf(image, given, params, threads=2))
        for stop, changed in early.items():
            samples.time(f"stop_{stop:g}", lambda changed=changed: dense_crf(image, given, changed))
        profile(samples, image, given, params)
        if reference:
            wanted = pydensecrf_in_steps(samples, image, given, params)
    row: dict[str, Any] = {
        "ms": {name: round(samples.median(name), 2) for name in samples.undisturbed()},
        "undisturbed_samples": samples.undisturbed(),
        "stop_labels_equal": {
            f"{stop:g}": float((dense_crf(image, given, changed).argmax(axis=0) == labels).mean())
            for stop, changed in early.items()
        },
    }
    if wanted is not None:
        row["ms"]["pydensecrf"] = round(
            row["ms"]["pydensecrf_build"] + row["ms"]["pydensecrf_step"] * params.iterations, 2
        )
        row["largest_difference"] = float(np.abs(wanted - marginals).max())
        row["labels_equal"] = float((wanted.argmax(axis=0) == labels).mean())
    return row


def pydensecrf_in_steps(
    samples: Samples, image: NDArray[np.uint8], given: NDArray[np.float32], params: CrfParams
) -> NDArray[np.float32]:
    """Its marginals, by the same calls as the backend's, one step at a time."""
    from pydensecrf.densecrf import DenseCRF2D

    classes, height, width = given.shape
    crf = DenseCRF2D(width, height, classes)
    pixels = np.array(image, order="C")

    def build() -> Any:
        clipped = np.clip(given, LEAST_PROBABILITY, 1, dtype=np.float32)
        crf.setUnaryEnergy(np.ascontiguousarray(-np.log(clipped).reshape(classes, -1)))
        crf.addPairwiseGaussian(sxy=params.spatial_sxy, compat=params.spatial_compat)
        crf.addPairwiseBilateral(
            sxy=params.bilateral_sxy,
            srgb=params.bilateral_srgb,
            rgbim=pixels,
            compat=params.bilateral_compat,
        )
        return crf.startInference()

    q, first, second = samples.time("pydensecrf_build", build)
    for _ in range(params.iterations):
        samples.time("pydensecrf_step", lambda: crf.stepInference(q, first, second))
    return np.asarray(q, np.float32).reshape(given.shape)


def profile(
    samples: Samples, image: NDArray[np.uint8], given: NDArray[np.float32], params: CrfParams
) -> None:
    """Where one thread's time goes: the lattice of positions and colours, one blur, one pass over pixels."""
    plain = np.ascontiguousarray(image).view()
    plain.flags.writeable = False
    crew = Crew(1)
    deviations = (*(params.bilateral_sxy,) * 2, *(params.bilateral_srgb,) * 3)
    strength = params.bilateral_compat
    alike = samples.time("part_build", lambda: build_lattice(plain, deviations, strength=strength, crew=crew))
    near = module._position_lattice(plain, params, crew)
    planes = given.reshape(len(given), -1)
    field = module._MeanField(planes, near, alike, np.empty_like(planes))
    field.run(0, crew, stop=0)
    for name, part in (("part_blur_near", field.near), ("part_blur_alike", field.alike)):
        samples.time(name, lambda part=part: part.blur(crew))
    bands = range(len(alike.bands))
    samples.time("part_pass", lambda: [field._pass(index, module.kernels.MIDDLE) for index in bands])


def medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the images: time of each candidate, its ratio to pydensecrf, and the least agreement."""
    names = rows[0]["ms"]
    result: dict[str, Any] = {
        "ms": {name: round(statistics.median(row["ms"][name] for row in rows), 2) for name in names},
        "stop_labels_equal": {
            stop: {
                "median": statistics.median(row["stop_labels_equal"][stop] for row in rows),
                "least": min(row["stop_labels_equal"][stop] for row in rows),
            }
            for stop in rows[0]["stop_labels_equal"]
        },
    }
    if "pydensecrf" in names:
        result["times_faster"] = {
            name: round(statistics.median(row["ms"]["pydensecrf"] / row["ms"][name] for row in rows), 2)
            for name in ("ours_1_thread", "ours_2_threads", *(f"stop_{stop:g}" for stop in STOPS))
        }
        result["largest_difference"] = max(row["largest_difference"] for row in rows)
        result["labels_equal"] = min(row["labels_equal"] for row in rows)
    return result


if __name__ == "__main__":
    main()
