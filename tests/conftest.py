"""Fixtures that every part of the suite shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wsss_rt.gpu_driver import settle_absent_driver

# the suite runs in as many processes as there are cores; threads within each would only fight for them
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton decides when it is imported whether it compiles kernels or interprets them, and torch may import it
# in any test; asking torch for a GPU here would make every process of the suite import torch
if not any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")):
    os.environ.setdefault("TRITON_INTERPRET", "1")
settle_absent_driver()

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = Path(__file__).resolve().parent / "goldens"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what takes minutes a test, unless asked."""
    if os.environ.get("WSSS_RT_LARGE") == "1":
        return
    for item in items:
        if item.get_closest_marker("large"):
            item.add_marker(pytest.mark.skip(reason="takes minutes or gigabytes: WSSS_RT_LARGE=1"))


@pytest.fixture(scope="session")
def root_dir() -> Path:
    """Root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def goldens_dir() -> Path:
    """Numbers that the official code gave; the small ones travel with the tests."""
    return GOLDENS


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder beside the project that holds all goldens and the photographs; skips where it is absent."""
    shared = ROOT.parent / "shared"
    if not (shared / "goldens").is_dir():
        pytest.skip("needs ../shared, which is not part of the project")
    return shared
