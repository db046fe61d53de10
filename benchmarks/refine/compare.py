"""The dense CRF beside pydensecrf, image by image in one process: time and agreement.

    python benchmarks/refine/compare.py [--data ../shared/data/voc_animals] [--count 20] [--rows FILE]

Without photographs it takes scenes; without pydensecrf2 (extra ``crf-reference``) it gives no ratio. Every
round runs all candidates in turn, so that a busy machine is busy for all. Samples during which the host took
time from this virtual machine (steal in /proc/stat), or another process took a processor from this one, do
not count, and are made anew; where there is no other, the fastest counts. pydensecrf, whose whole call is
long, is timed in pieces for that: its time is that of its set-up and ten times that of a step.
With ``--rows`` the images measured so far stand in a file, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsss_rt.crew import Crew
from wsss_rt.refine import dense_crf as module
from wsss_rt.refine.dense_crf import dense_crf
from wsss_rt.refine.lattice import Lattice, build_lattice
from wsss_rt.refine.params import LEAST_PROBABILITY, PRESETS, CrfParams

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from record import write_result  # noqa: E402

from refine.inputs import PHOTOGRAPHS, noisy, photographs, present, scenes  # noqa: E402

STOPS = (0.01, 0.001)
# images whose time is also taken apart
PROFILED = 5


class Samples:
    """Wall times of named pieces of work, of which undisturbed ones are preferred."""

    def __init__(self) -> None:
        self._times: defaultdict[str, list[tuple[bool, float]]] = defaultdict(list)

    def collect(self, work: Mapping[str, Callable[[], Any]], *, clean: int, rounds: int) -> None:
        """Run everything in turn until each has ``clean`` undisturbed samples, or for ``rounds`` rounds."""
        for _ in range(rounds):
            waiting = [name for name in work if len(self._clean(name)) < clean]
            for name in waiting:
                before, begun = disturbances(), time.perf_counter()
                work[name]()
                elapsed = (time.perf_counter() - begun) * 1e3
                self._times[name].append((disturbances() != before, elapsed))

    def median(self, name: str) -> float:
        """Over undisturbed samples; the fastest where all were disturbed."""
        return statistics.median(self._clean(name) or [min(value for _, value in self._times[name])])

    def undisturbed(self) -> dict[str, str]:
        """How many of how many samples, by name."""
        return {name: f"{len(self._clean(name))} of {len(times)}" for name, times in self._times.items()}

    def _clean(self, name: str) -> list[float]:
        return [value for disturbed, value in self._times[name] if not disturbed]


def disturbances() -> tuple[int, int]:
    """Ticks that the host took from this machine, and how often others took a processor from this process."""
    stolen = int(Path("/proc/stat").read_text().split(maxsplit=9)[8])
    return stolen, resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--clean", type=int, default=3, help="undisturbed samples of each piece")
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
        row |= measure(
            image, noisy(mask, seed), PRESETS[options.preset], options.clean, profiled=seed < PROFILED
        )
        rows.append(row)
        print(row, flush=True)
        if options.rows is not None:
            with options.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
    result = {
        "inputs": "photographs" if there else "scenes",
        "preset": options.preset,
        "clean_samples": options.clean,
        "images": rows,
        "median": medians(rows),
    }
    print(f"wrote {write_result('refine', result)}")


def measure(
    image: NDArray[np.uint8], given: NDArray[np.float32], params: CrfParams, clean: int, *, profiled: bool
) -> dict[str, Any]:
    """Times of one image, its profile, and agreement with pydensecrf and of the early stop."""
    marginals = dense_crf(image, given, params)
    labels = marginals.argmax(axis=0)
    early = {stop: replace(params, stop=stop) for stop in STOPS}
    work: dict[str, Callable[[], Any]] = {
        "ours_1_thread": lambda: dense_crf(image, given, params),
        "ours_2_threads": lambda: dense_crf(image, given, params, threads=2),
    }
    for stop, changed in early.items():
        work[f"stop_{stop:g}"] = lambda changed=changed: dense_crf(image, given, changed)
    if profiled:
        work |= parts(image, given, params)
    reference = None
    if importlib.util.find_spec("pydensecrf") is not None:
        reference = Pydensecrf(image, given, params)
        work |= {"pydensecrf_build": reference.build, "pydensecrf_step": reference.step}
    samples = Samples()
    samples.collect(work, clean=clean, rounds=4 * clean)
    row: dict[str, Any] = {
        "ms": {name: round(samples.median(name), 2) for name in work},
        "undisturbed_samples": samples.undisturbed(),
        "stop_labels_equal": {
            f"{stop:g}": float((dense_crf(image, given, changed).argmax(axis=0) == labels).mean())
            for stop, changed in early.items()
        },
    }
    if reference is not None:
        times = row["ms"]
        times["pydensecrf"] = round(
            times["pydensecrf_build"] + times["pydensecrf_step"] * params.iterations, 2
        )
        reference.build()
        for _ in range(params.iterations):
            reference.step()
        wanted = reference.marginals()
        row["largest_difference"] = float(np.abs(wanted - marginals).max())
        row["labels_equal"] = float((wanted.argmax(axis=0) == labels).mean())
    return row


class Pydensecrf:
    """The calls of the backend, one step at a time."""

    def __init__(self, image: NDArray[np.uint8], given: NDArray[np.float32], params: CrfParams) -> None:
        self._image, self._given, self._params = np.array(image, order="C"), given, params

    def build(self) -> None:
        """Unary, both lattices, and the state of the inference."""
        from pydensecrf.densecrf import DenseCRF2D

        classes, height, width = self._given.shape
        params = self._params
        self._crf = DenseCRF2D(width, height, classes)
        clipped = np.clip(self._given, LEAST_PROBABILITY, 1, dtype=np.float32)
        self._crf.setUnaryEnergy(np.ascontiguousarray(-np.log(clipped).reshape(classes, -1)))
        self._crf.addPairwiseGaussian(sxy=params.spatial_sxy, compat=params.spatial_compat)
        self._crf.addPairwiseBilateral(
            sxy=params.bilateral_sxy,
            srgb=params.bilateral_srgb,
            rgbim=self._image,
            compat=params.bilateral_compat,
        )
        self._state = self._crf.startInference()

    def step(self) -> None:
        """One step of mean field."""
        self._crf.stepInference(*self._state)

    def marginals(self) -> NDArray[np.float32]:
        """After the steps so far."""
        return np.asarray(self._state[0], np.float32).reshape(self._given.shape)


def parts(
    image: NDArray[np.uint8], given: NDArray[np.float32], params: CrfParams
) -> dict[str, Callable[[], Any]]:
    """Where one thread's time goes: the lattice of positions and colours, the blurs, a pass over pixels."""
    plain = np.ascontiguousarray(image).view()
    plain.flags.writeable = False
    crew = Crew(1)
    deviations = (*(params.bilateral_sxy,) * 2, *(params.bilateral_srgb,) * 3)

    def build() -> Lattice:
        return build_lattice(plain, deviations, strength=params.bilateral_compat, crew=crew)

    alike, near = build(), module._position_lattice(plain, params, crew)
    planes = given.reshape(len(given), -1)
    field = module._MeanField(planes, near, alike, np.empty_like(planes))
    bands = range(len(alike.bands))
    return {
        "part_build": build,
        "part_begin": lambda: [field._begin(index, module.kernels.FIRST) for index in bands],
        "part_blur_near": lambda: field.near.blur(crew),
        "part_blur_alike": lambda: field.alike.blur(crew),
        "part_pass": lambda: [field._pass(index, module.kernels.MIDDLE) for index in bands],
    }


def medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the images: time of each candidate, its ratio to pydensecrf, and the least agreement."""
    names = rows[0]["ms"]
    times = {name: [row["ms"][name] for row in rows if name in row["ms"]] for name in names}
    result: dict[str, Any] = {
        "ms": {name: round(statistics.median(values), 2) for name, values in times.items()},
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
