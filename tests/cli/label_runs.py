"""Running `label` in tests: inside this process, or as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.label_models import blocks

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        """Lines of stderr that report an error."""
        return [line for line in self.err.splitlines() if "error:" in line]


class Cli:
    """Calls the command line in this process, from ``folder``."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self._monkeypatch, self._capsys = folder, monkeypatch, capsys

    def __call__(self, *words: str | Path) -> Ended:
        """Run ``wsss-rt`` with these words."""
        from wsss_rt.cli.app import main

        self._monkeypatch.chdir(self.folder)
        self._monkeypatch.setattr(sys, "argv", ["wsss-rt", *map(str, words)])
        self._capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = self._capsys.readouterr()
        return Ended(code, captured.out, captured.err)


def start(folder: Path, *words: str | Path, **options: Any) -> subprocess.Popen[str]:
    """Start ``wsss-rt`` as a process of its own, in ``folder``."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "wsss_rt", *map(str, words)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        **options,
    )


def run(folder: Path, *words: str | Path, timeout: float = 600, **options: Any) -> Ended:
    """Run ``wsss-rt`` as a process of its own to its end; ``timeout`` in seconds."""
    process = start(folder, *words, **options)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        # harmless after a normal end
        process.kill()
    return Ended(process.returncode, out, err)


def write_images(folder: Path, count: int, *, height: int = 64, width: int = 96) -> Path:
    """``count`` small PNG images, the same for the same numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(blocks(index, height=height, width=width)).save(folder / f"{index:04d}.png")
    return folder


def manifest(out: Path) -> dict[str, dict[str, Any]]:
    """Records by path."""
    lines = (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert len({record["path"] for record in records}) == len(records)
    return {record["path"]: record for record in records}


def tree(out: Path) -> dict[str, Any]:
    """Every file of an output folder, without what tells the time."""
    content: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_dir():
            continue
        if name == "manifest.jsonl":
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            content[name] = [{k: v for k, v in record.items() if k != "timings"} for record in records]
        elif name == "run.json":
            content[name] = {k: v for k, v in json.loads(path.read_text()).items() if k != "session"}
        else:
            content[name] = path.read_bytes()
    return content
