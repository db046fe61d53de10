"""Fixtures of the input and output tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nasty import NastyFolder, build_nasty_folder


@pytest.fixture(scope="session")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> NastyFolder:
    """The nasty folder; read-only by agreement."""
    return build_nasty_folder(tmp_path_factory.mktemp("nasty") / "images")


@pytest.fixture()
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
