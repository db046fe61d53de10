"""Runs ``wsss-rt eval`` in the test's own process."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from wsss_rt.cli import app


class Command:
    """Runs the command line in this process, as the console script does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capture = monkeypatch, capfd

    def __call__(self, *words: object) -> tuple[int, str, str]:
        self._patch.setattr(sys, "argv", ["wsss-rt", "eval", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            app.main()
            raise SystemExit(0)
        out, err = self._capture.readouterr()
        code = end.value.code
        return (0 if code is None else int(code)), out, err

    def json(self, *words: object) -> dict[str, Any]:
        code, out, err = self(*words, "--json", "-")
        assert code == 0, err
        parsed: dict[str, Any] = json.loads(out)
        return parsed


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """The command line."""
    return Command(monkeypatch, capfd)
