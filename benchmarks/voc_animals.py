"""The whole path on photographs: train on tags, export, label with given and with predicted tags, evaluate.

    python benchmarks/voc_animals.py --data ../shared/data/voc_animals --images 40000 [--recipe folder-small]

The photographs are VOC 2012's of five animals with what else is in them, so the figures are no VOC figures.
The model starts from random weights: the result is low, and shows that nothing in the path is special
to scenes. Stages that have ended are kept in ``--work`` with the time they took: a run cut short goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from commands import wsss_rt
from record import write_result

UNKEPT = ("prediction", "truth", "per_image", "confusion")
CLASSES = ("cat", "dog", "horse", "sheep", "cow", "person")


class Stages:
    """Commands that run once, and the seconds each took, kept in a file between runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ended: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def run(self, stage: str, *arguments: Any) -> None:
        """Run a ``wsss-rt`` command, unless this very command has ended well before.

        Where it runs, what later stages made of its former result is forgotten.
        """
        command = [str(argument) for argument in arguments]
        if self._ended.get(stage, {}).get("command") == command:
            return
        names = list(self._ended)
        for later in names[names.index(stage) :] if stage in names else ():
            del self._ended[later]
        seconds = wsss_rt(*command)
        self._ended[stage] = {"command": command, "seconds": seconds}
        self._path.write_text(json.dumps(self._ended))

    @property
    def seconds(self) -> dict[str, float]:
        """Of each stage."""
        return {stage: entry["seconds"] for stage, entry in self._ended.items()}


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

    run, model = work / "run", work / "voc_animals.onnx"
    stages = Stages(work / "seconds.json")
    stages.run(
        "train", "train", "mctformer-v2", "--data", options.data, "--recipe", options.recipe,
        "--images", options.images, "--out", run,
    )  # fmt: skip
    stages.run("export", "export", run, "--out", model)
    found = {}
    for mode, given in (("given", ("--tags", options.data / "labels.csv")), ("predicted", ())):
        out = work / f"labels-{mode}"
        stages.run(
            f"label_{mode}",
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
        stages.run(
            f"eval_{mode}", "eval", out, options.data, "--list", split, "--only", ",".join(CLASSES),
            "--json", result,
        )  # fmt: skip
        measured = json.loads(result.read_text())
        # folders of this machine say nothing on another, and five thousand lines on single images little
        found[mode] = {key: value for key, value in measured.items() if key not in UNKEPT}
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
            "recommended": json.loads((run / "recommended.json").read_text()),
            "seconds": {stage: round(value, 1) for stage, value in stages.seconds.items()},
            "eval": found,
        },
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
