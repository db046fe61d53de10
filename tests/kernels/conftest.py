"""Kernels on whatever there is: a GPU, or Triton's interpreter (``tests/conftest.py`` turns it on)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from wsss_rt.kernels import _dispatch, _proven  # noqa: E402
from wsss_rt.kernels.proof import watch  # noqa: E402
from wsss_rt.kernels.proof.poison import poisoned_memory  # noqa: E402

#: What is called with how checks are to end, and gives the log of those that were begun.
PutChildren = Callable[[dict[str, str]], Path]


@pytest.fixture
def device() -> str:
    """Where kernels run here."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """An element that a kernel forgets to write is seen."""
    with poisoned_memory():
        yield


@pytest.fixture
def fresh_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, and a process that remembers nothing, before and after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_proven, "_known", {})
    monkeypatch.setattr(_proven, "_taken", {})


@pytest.fixture
def provable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's interpreter counts as a device that can prove kernels."""
    monkeypatch.setattr("wsss_rt.kernels.proof.hindrance", lambda device: None)


@pytest.fixture
def as_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the CPU count as those of a GPU."""
    monkeypatch.setattr(_dispatch, "_on_gpu", lambda tensor: True)


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PutChildren:
    """Puts ``proof_child.py`` in the child's place, and gives the log of what it began."""

    def put(table: dict[str, str]) -> Path:
        log = tmp_path / "begun"
        log.touch()
        words = [sys.executable, str(Path(__file__).with_name("proof_child.py")), json.dumps(table), str(log)]
        monkeypatch.setattr(watch, "_command", lambda device: words)
        return log

    return put
