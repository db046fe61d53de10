"""Checks and times everything on a GPU in one call; ``benchmarks/results/h200-kernels.json`` grows with it.

    python benchmarks/kernels/gpu.py [--minutes 12] [--repeat 50] [--only aggregate,memory]
    python benchmarks/kernels/gpu.py --images VOC/JPEGImages --tags VOC/labels.csv     # labelling too

Each part runs in a process of its own: first its kernels' parity, then its times, a row at a time. A part
that fails, hangs or leaves the GPU unusable costs its remaining rows, and its reason stands in the result.
Parts begin in order of what matters most, and none begins or goes on after ``--minutes``. Rates stand beside
what large matrix products and a large copy reached in the same run. ``--tune`` first looks for faster tiles
and keeps them in the user's cache.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]
from record import environment, write_result  # noqa: E402

from wsss_rt.kernels.proof.rule import Verdict  # noqa: E402


@dataclass(frozen=True)
class Part:
    """One thing that is checked and timed.

    Attributes:
        name: of its entry in the result.
        module: below ``benchmarks.kernels``. Its ``parity_of_all(device, small=...)``, where it has one,
            judges first; what does not pass is not timed.
        timings: name of its function (repeat, ceilings) that yields rows.
        minutes: the most it may take.
        result: file of ``benchmarks/results`` that its rows go to as well.
    """

    name: str
    module: str
    timings: str = "timings"
    minutes: float = 3.0
    result: str | None = None


#: In order of importance.
PARTS = (
    Part("ceilings", "timing", timings="ceiling_rows", minutes=1),
    Part("aggregate", "aggregate", minutes=4),
    Part("propagate", "propagate"),
    Part("reattend", "reattend", minutes=2),
    Part("memory", "memory", minutes=2),
    Part("models", "models", minutes=4),
    Part("crf", "crf"),
    Part("walk", "walk", minutes=2),
    Part("map_to_mask", "map_to_mask", minutes=2),
    Part("engines", "models", timings="engine_timings", minutes=5, result="h200"),
)
LABELLING_MINUTES = 6.0


def available(parts: Iterable[Part] = PARTS) -> list[Part]:
    """Those whose module is there."""
    folder = Path(__file__).parent
    return [part for part in parts if (folder / f"{part.module}.py").is_file()]


def parity_of_all(device: str, *, small: bool, parts: Iterable[Part] = PARTS) -> list[Verdict]:
    """Verdicts on all kernels in this process; ``small`` for the interpreter."""
    found: list[Verdict] = []
    for name in dict.fromkeys(part.module for part in available(parts)):
        judge = getattr(_module(name), "parity_of_all", None)
        found += judge(device, small=small) if judge is not None else []
    return found


def run_part(part: Part, device: str, out: Path, *, repeat: int, ceiling: dict[str, float]) -> int:
    """Judge and time one part in this process; ``out`` is rewritten after each row.

    Returns:
        0, or 1 where a kernel did not pass or a row failed.
    """
    found: dict[str, Any] = {"rows": {}}

    def store() -> None:
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps(found))
        os.replace(partial, out)

    module = _module(part.module)
    try:
        judge = getattr(module, "parity_of_all", None)
        if judge is not None:
            verdicts = judge(device, small=device == "cpu")
            found["parity"] = [verdict.as_dict() for verdict in verdicts]
            found["passed"] = all(verdict.passed for verdict in verdicts)
            store()
        if found.get("passed", True):
            for name, row in getattr(module, part.timings)(repeat, ceiling):
                found["rows"][name] = row
                print(part.name, name, json.dumps(row), flush=True)
                store()
    except Exception:  # noqa: BLE001 - its rows are lost, and the reason is what the result then says
        found["error"] = traceback.format_exc()[-2000:]
        print(found["error"], file=sys.stderr, flush=True)
    store()
    return int("error" in found or not found.get("passed", True))


def run_all(
    parts: Iterable[Part], options: argparse.Namespace, *, device: str, started: float | None = None
) -> dict[str, Any]:
    """Every part in a process of its own, within ``options.minutes``; the result is stored after each."""
    until = (time.monotonic() if started is None else started) + 60 * options.minutes
    result: dict[str, Any] = {"parts": {}, "machine": environment()}
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            out = Path(folder) / f"{part.name}.json"
            left = until - time.monotonic()
            entry: dict[str, Any] = {"rows": {}}
            if left < 5:
                entry["error"] = "not begun: the time was up"
            else:
                words = [sys.executable, __file__, "--part", part.name, "--out", str(out), "--device", device]
                words += ["--repeat", str(options.repeat)]
                words += ["--ceilings", json.dumps(result.get("ceilings", {}))]
                limit = min(60 * part.minutes, left)
                begun = time.monotonic()
                reason = _finish(words, limit)
                if out.is_file():
                    entry = json.loads(out.read_text())
                if reason is not None and "error" not in entry:
                    entry["error"] = reason
                entry["seconds"] = round(time.monotonic() - begun, 1)
            result["parts"][part.name] = entry
            if part.name == "ceilings":
                result["ceilings"] = entry["rows"].get("ceilings", {})
                result["device"] = entry["rows"].get("device")
            if part.result and entry["rows"]:
                kept = {"device": result.get("device"), "ceilings": result.get("ceilings"), part.name: entry}
                write_result(part.result, kept)
            if options.name:
                write_result(options.name, result)
    return result


def _finish(words: list[str], seconds: float) -> str | None:
    """Why a command did not end well, or None."""
    try:
        code = subprocess.run(words, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    # 1 is explained in its file
    return f"its process ended with {code}" if code not in (0, 1) else None


def _module(name: str) -> Any:
    return importlib.import_module(f"benchmarks.kernels.{name}")


def summary(result: dict[str, Any]) -> dict[str, str]:
    """A line a part: what passed, how many rows there are, and what went wrong."""
    lines = {}
    for name, entry in result["parts"].items():
        judged = entry.get("parity", [])
        passed = sum(verdict["passed"] for verdict in judged)
        words = [f"{len(entry['rows'])} rows"]
        if judged:
            words.insert(0, f"parity {passed} of {len(judged)}")
        if "error" in entry:
            words.append(entry["error"].strip().splitlines()[-1])
        lines[name] = ", ".join(words)
    return lines


def main() -> int:
    """Run; 1 where a part did not pass or has no rows."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=12.0, help="of everything together")
    parser.add_argument("--repeat", type=int, default=50)
    parser.add_argument("--only", default="", help="names of parts, with commas")
    parser.add_argument("--name", default="h200-kernels", help="of the result; empty stores nothing")
    parser.add_argument("--tune", action="store_true", help="look for faster tiles first")
    parser.add_argument("--images", type=Path, help="photographs for labelling")
    parser.add_argument("--tags", type=Path, help="their tags")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ceilings", type=json.loads, default={}, help=argparse.SUPPRESS)
    options = parser.parse_args()
    known = {part.name: part for part in available()}
    if options.part:
        part = {**known, TUNE.name: TUNE}[options.part]
        return run_part(part, options.device, options.out, repeat=options.repeat, ceiling=options.ceilings)
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU; the parity part runs in tests/kernels, in Triton's interpreter")
    wanted = [name for name in options.only.split(",") if name] or list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        sys.exit(f"no part {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = [part for name, part in known.items() if name in wanted or name == "ceilings"]
    if options.tune:
        chosen.insert(0, TUNE)
    if options.images and options.tags:
        options.minutes -= min(LABELLING_MINUTES, options.minutes / 2)
    result = run_all(chosen, options, device=options.device, started=started)
    if options.images and options.tags:
        left = min(
            60 * LABELLING_MINUTES, 60 * options.minutes + 60 * LABELLING_MINUTES - time.monotonic() + started
        )
        script = str(Path(__file__).with_name("labelling.py"))
        words = [sys.executable, script, "--images", str(options.images), "--tags", str(options.tags)]
        reason = _finish(words, max(left, 30.0))
        print(f"labelling: {reason or 'benchmarks/results/labelling-gpu.json'}")
    for name, line in summary(result).items():
        print(f"{name}: {line}")
    parts = result["parts"].values()
    return int(any("error" in entry or not entry.get("passed", True) for entry in parts))


#: Not a measurement: it changes which tiles the others run with.
TUNE = Part("tune", "tune", minutes=4)

if __name__ == "__main__":
    sys.exit(main())
