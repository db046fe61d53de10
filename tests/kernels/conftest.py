"""Kernels on whatever there is: a GPU, or Triton's interpreter (``tests/conftest.py`` turns it on)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton")

from wsss_rt.kernels.proof.poison import poisoned_memory  # noqa: E402


@pytest.fixture
def device() -> str:
    """Where kernels run here."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """An element that a kernel forgets to write is seen."""
    with poisoned_memory():
        yield
