"""Runs ``test_sizes.py`` under pytest-benchmark and keeps what it found beside the other results.

    python benchmarks/refine/sizes.py

A row is one size, number of classes and implementation: median and fastest of its calls (five, or two from a
million pixels on), and the share of labels equal to the plain form's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from record import write_result  # noqa: E402

CASES = Path(__file__).resolve().with_name("test_sizes.py")


def main() -> None:
    """Measure and store.

    Raises:
        SystemExit: a case failed; pytest's own report stands above.
    """
    with tempfile.TemporaryDirectory(prefix="wsss-rt-") as folder:
        found = Path(folder) / "found.json"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", f"--benchmark-json={found}", str(CASES)]
        )
        if done.returncode:
            raise SystemExit(done.returncode)
        rows = [_row(entry) for entry in json.loads(found.read_text())["benchmarks"]]
    rows.sort(key=lambda row: (row["size"][0] * row["size"][1], row["classes"], row["call"]))
    print(f"wrote {write_result('refine_sizes', {'rows': rows})}")


def _row(entry: dict[str, Any]) -> dict[str, Any]:
    size, params = entry["param"].split("-")[0], entry["params"]
    width, height = (int(side) for side in size.split("x"))
    return {
        "size": [height, width],
        "classes": params["classes"],
        "call": params["call"],
        "calls": entry["stats"]["rounds"],
        "median_ms": round(entry["stats"]["median"] * 1e3, 2),
        "fastest_ms": round(entry["stats"]["min"] * 1e3, 2),
        "labels_equal": entry["extra_info"]["labels_equal"],
    }


if __name__ == "__main__":
    main()
