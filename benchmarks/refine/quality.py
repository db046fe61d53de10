"""mIoU before and after the CRF, over how wrong its input is; for which inputs it makes masks worse.

    python benchmarks/refine/quality.py [--data ../shared/data/voc_animals] [--count 30]

Photographs are of the official val list, with its fine masks; scenes are generated. The probabilities come
from the true masks: shares of the classes on tokens of 8, 16 or 32 pixels, with noise, drawn up to the image.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from wsss_rt.metrics import ConfusionMatrix, nanmean
from wsss_rt.refine.dense_crf import dense_crf
from wsss_rt.refine.params import PRESETS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from record import write_result  # noqa: E402

from refine.inputs import PHOTOGRAPHS, Sample, noisy, photographs, present, scenes  # noqa: E402

# side of a token in pixels, and the noise on its shares
INPUTS = ((8, 0.25), (16, 0.0), (16, 0.25), (16, 0.5), (32, 0.25))
# mask values: background and VOC's classes, of which scenes have fewer
VALUES = 21
COMPARED = ("mctformer", "segmentation")


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--count", type=int, default=30)
    options = parser.parse_args()
    sources: dict[str, Callable[[], Iterable[Sample]]] = {"scenes": lambda: scenes(options.count)}
    if options.data.is_dir():
        sources["photographs"] = lambda: photographs(options.data, options.count, fine=True)
    rows = []
    for source, samples in sources.items():
        rows += measure(source, list(samples()))
    print(f"wrote {write_result('refine_quality', {'count': options.count, 'rows': rows})}")


def measure(source: str, samples: list[Sample]) -> list[dict[str, Any]]:
    """A row for each kind of input."""
    rows = []
    for token, noise in INPUTS:
        matrices = {name: ConfusionMatrix(VALUES) for name in ("before", *COMPARED)}
        worse = dict.fromkeys(COMPARED, 0)
        for seed, (_, image, mask) in enumerate(samples):
            values, given = present(mask), noisy(mask, seed, token=token, noise=noise)
            own = {}
            for name, matrix in matrices.items():
                found = given if name == "before" else dense_crf(image, given, PRESETS[name])
                label = values[found.argmax(axis=0)].astype(np.uint8)
                alone = ConfusionMatrix(VALUES)
                for target in (matrix, alone):
                    target.update(label, mask)
                own[name] = nanmean(alone.iou())
            for name in COMPARED:
                worse[name] += own[name] < own["before"]
        row: dict[str, Any] = {"source": source, "images": len(samples), "token": token, "noise": noise}
        row["miou"] = {name: nanmean(matrix.iou()) for name, matrix in matrices.items()}
        row["images_made_worse"] = worse
        rows.append(row)
        print(row, flush=True)
    return rows


if __name__ == "__main__":
    main()
