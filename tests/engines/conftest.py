"""Engines on a graph that takes milliseconds to build, and on a real exported model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.label_models import write_color_model


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own; the user's is never touched."""
    home = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture
def color_model(tmp_path: Path) -> Path:
    """Artifact whose maps are the amounts of red, green and blue."""
    return write_color_model(tmp_path / "color.onnx")
