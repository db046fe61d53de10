"""The whole path on photographs: train on tags, export, label with given and with predicted tags, evaluate.

    python benchmarks/voc_animals.py --data ../shared/data/voc_animals --images 40000 [--recipe folder-small]

The photographs are VOC 2012's of five animals with what else is in them, so the figures are no VOC figures.
The model starts from random weights: the result is low, and shows that nothing in the path is special
to scenes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from commands import wsss_rt
from record import write_result

CLASSES = ("cat", "dog", "horse", "sheep", "cow", "person")


def main() -> None:
    """Run every stage and store IoU and time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--recipe", default="folder-small")
    parser.add_argument("--work", type=Path, default=None)
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="wsss-rt-"))
    work.mkdir(parents=True, exist_ok=True)
    split = options.data / "ImageSets" / "Segmentation" / "val.txt"
    names = split.read_text().split()
    photographs = work / "val.txt"
    photographs.write_text("".join(f"{options.data.resolve()}/JPEGImages/{name}.jpg\n" for name in names))

    seconds = {
        "train": wsss_rt(
            "train", "mctformer-v2", "--data", options.data, "--recipe", options.recipe,
            "--images", options.images, "--out", work / "run",
        )
    }  # fmt: skip
    model = work / "voc_animals.onnx"
    model.unlink(missing_ok=True)
    seconds["export"] = wsss_rt("export", work / "run", "--out", model)
    found = {}
    for mode, given in (("given", ("--tags", options.data / "labels.csv")), ("predicted", ())):
        out = work / f"labels-{mode}"
        seconds[f"label_{mode}"] = wsss_rt(
            "label",
            f"@{photographs}",
            "--out",
            out,
            "--model",
            model,
            "--format",
            "png,report",
            "--quiet",
            *given,
        )
        result = work / f"{mode}.json"
        seconds[f"eval_{mode}"] = wsss_rt(
            "eval", out, options.data, "--list", split, "--only", ",".join(CLASSES), "--json", result
        )
        found[mode] = json.loads(result.read_text())
    config = json.loads((work / "run" / "config.json").read_text())
    path = write_result(
        "voc_animals",
        {
            "photographs": len(names),
            "model": {
                "method": config["method"],
                "backbone": config["model"]["backbone"],
                "images_seen": config["training"]["images_seen"],
                "tag_map": config["quality"].get("validation", {}).get("map"),
            },
            "recommended": config["recommended"],
            "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
            "eval": found,
        },
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
