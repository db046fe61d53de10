"""Memory and time of the CRF on 4000x3000 px, each in a process of its own, beside what it says beforehand.

    python benchmarks/refine/large.py [--data ../shared/data/voc_animals]

The image is a photograph (or a scene) drawn up, with noise, so that it has vertices as a camera's image has.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from record import write_result  # noqa: E402

from refine.inputs import PHOTOGRAPHS, photographs, scenes  # noqa: E402

HEIGHT, WIDTH = 3000, 4000
CLASSES = (2, 4, 21)
LIMIT = 4e9


def main() -> None:
    """Measure and store, or one case where ``--classes`` is given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--classes", type=int)
    options = parser.parse_args()
    if options.classes is not None:
        print(json.dumps(measure(options.data, options.classes)))
        return
    rows = []
    for classes in CLASSES:
        words = [sys.executable, __file__, "--data", str(options.data), "--classes", str(classes)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout))
        print(rows[-1], flush=True)
    content = {"size": [HEIGHT, WIDTH], "limit_bytes": int(LIMIT), "rows": rows}
    print(f"wrote {write_result('refine_large', content)}")


def measure(data: Path, classes: int) -> dict[str, Any]:
    """One case: refused, or its time and peak memory, the imports included."""
    from wsss_rt.errors import ImageError
    from wsss_rt.refine.dense_crf import dense_crf
    from wsss_rt.refine.memory import crf_bytes

    samples = photographs(data, 1, fine=True) if data.is_dir() else scenes(1)
    _, small, _ = next(iter(samples))
    rng = np.random.default_rng(0)
    image = cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    for rows in np.array_split(image, 100):
        rows[:] = np.clip(rows + rng.normal(0, 4, rows.shape), 0, 255)
    planes = np.empty((classes, HEIGHT, WIDTH), np.float32)
    for plane in planes:
        share = rng.random((HEIGHT // 64, WIDTH // 64), np.float32)
        cv2.resize(share, (WIDTH, HEIGHT), dst=plane, interpolation=cv2.INTER_LINEAR)
    dense_crf(image[:64, :64], planes[:, :64, :64])
    row: dict[str, Any] = {"classes": classes, "said_bytes": crf_bytes(HEIGHT, WIDTH, classes)}
    begun = time.perf_counter()
    try:
        dense_crf(image, planes, threads=2, memory_limit=LIMIT)
    except ImageError as error:
        row["refused"] = str(error)
    row["seconds"] = round(time.perf_counter() - begun, 2)
    row["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return row


if __name__ == "__main__":
    main()
