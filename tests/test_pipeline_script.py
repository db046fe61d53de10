"""examples/pipeline.sh: what it runs, that it goes on where it stopped, and what it leaves.

The commands are recorded, not run: a whole run takes half an hour, and the commands have tests of their own.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "pipeline.sh"
# stands in for wsss-rt: writes down its arguments, and what later commands look for
RECORDER = """
import json, os, sys
from pathlib import Path
words = sys.argv[1:]
with open(os.environ["RECORD"], "a") as record:
    record.write(json.dumps(words) + "\\n")
if words[0] == os.environ.get("BREAKS"):
    sys.exit(3)
if words[0] == "eval":
    Path(words[words.index("--json") + 1]).write_text(json.dumps({"miou": 0.512}))
"""


def run(tmp_path: Path, **settings: str) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """The script on tmp_path/work, and the commands that it ran this time."""
    recorder, record, program = (tmp_path / name for name in ("recorder.py", "record", "wsss rt"))
    recorder.write_text(RECORDER)
    record.write_text("")
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(recorder))} "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "WSSS_RT": str(program),
        "PYTHON": sys.executable,
        "RECORD": str(record),
        **settings,
    }
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "work")], env=environment, capture_output=True, text=True
    )
    return done, [json.loads(line) for line in record.read_text().splitlines()]


def test_every_stage_runs_once_and_its_figures_are_kept(tmp_path: Path) -> None:
    done, commands = run(tmp_path, HELD_OUT="7")
    assert done.returncode == 0, done.stderr
    assert [words[1] for words in commands if words[0] == "train"] == ["mctformer-v2", "psa", "segvit"]
    assert "51.2 %  segmenter (segvit), ONNX, no tags, held-out scenes" in done.stdout
    result = json.loads((tmp_path / "work" / "results.json").read_text())
    assert result["settings"]["HELD_OUT"] == "7"
    assert result["miou"]["segvit"] == result["miou"]["held-walk+crf"] == 0.512
    assert {"localizer", "affinity", "segvit", "label-pseudo"} <= set(result["seconds"])
    assert result["total"]["wall"] == pytest.approx(
        sum(stage["wall"] for stage in result["seconds"].values()), abs=0.1
    )

    again, commands = run(tmp_path, HELD_OUT="7")
    assert again.returncode == 0 and commands == []
    assert json.loads((tmp_path / "work" / "results.json").read_text()) == result
    # another student begins with what is there
    more, commands = run(tmp_path, HELD_OUT="7", STUDENTS="segvit conv-head")
    assert more.returncode == 0
    # with the CRF that its teachers had, too
    assert [words[0] for words in commands] == ["train", "export", "label", "eval", "label", "eval"]
    # what a stage that was stopped left behind is no stage
    (tmp_path / "work" / "stages" / "segvit-shrunk.time").touch()
    assert run(tmp_path, HELD_OUT="7")[0].returncode == 0


def test_the_segmenter_learns_from_pseudo_labels_and_labels_without_tags(tmp_path: Path) -> None:
    _, commands = run(tmp_path)
    work = tmp_path / "work"
    (train,) = [words for words in commands if words[:2] == ["train", "segvit"]]
    assert train[train.index("--masks") + 1] == f"{work}/masks/pseudo"
    assert train[train.index("--weights") + 1] == f"{work}/localizer"
    assert "--tags" not in train
    labels = [words for words in commands if words[0] == "label" and f"{work}/segvit.onnx" in words]
    assert len(labels) == 2 and not any("--tags" in words for words in labels)


def test_a_stage_that_fails_stops_the_script_and_is_what_runs_next(tmp_path: Path) -> None:
    broken, _ = run(tmp_path, BREAKS="train")
    assert broken.returncode == 3 and not (tmp_path / "work" / "results.json").exists()
    mended, commands = run(tmp_path)
    assert mended.returncode == 0
    assert commands[0][:2] == ["train", "mctformer-v2"]


def test_the_embedded_model_and_a_run_take_the_place_of_training(tmp_path: Path) -> None:
    _, commands = run(tmp_path, LOCALIZER="embedded")
    assert [words[1] for words in commands if words[0] == "train"] == ["psa", "segvit"]
    assert not any("--weights" in words for words in commands)
    assert all("scenes-v2" in words for words in commands if words[0] == "label" and "--tags" in words)


def test_a_folder_keeps_to_its_settings(tmp_path: Path) -> None:
    run(tmp_path)
    other, commands = run(tmp_path, LABELS="walk")
    assert other.returncode == 2 and commands == []
    assert "other settings" in other.stderr and "LABELS=walk" in other.stderr


def test_every_option_exists(tmp_path: Path) -> None:
    """A renamed option would otherwise show after ten minutes."""
    _, commands = run(tmp_path)
    options: dict[str, set[str]] = {}
    for words in commands:
        options.setdefault(words[0], set()).update(word for word in words if word.startswith("--"))
    assert set(options) == {"scenes", "train", "export", "label", "eval"}
    for command, used in options.items():
        help_text = subprocess.run(
            [sys.executable, "-m", "wsss_rt", command, "--help"],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "120"},
        ).stdout
        known = set(help_text.replace(",", " ").split())
        assert used <= known, command
