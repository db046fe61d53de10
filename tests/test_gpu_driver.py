"""A machine without NVIDIA's driver says so once; somebody's own choice of devices stays."""

from __future__ import annotations

import ctypes
import os
import sys

import pytest

from wsss_rt.gpu_driver import settle_absent_driver

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere nothing is set")
VISIBLE = "CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize("driver", [True, False])
def test_devices_are_hidden_only_where_there_is_no_driver(
    driver: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> object:
        assert name == "libcuda.so.1"
        if not driver:
            raise OSError("no such library")
        return object()

    # set first, so that the former value comes back whatever it was
    monkeypatch.setenv(VISIBLE, "")
    monkeypatch.delenv(VISIBLE)
    monkeypatch.setattr(ctypes, "CDLL", load)
    assert settle_absent_driver() is not driver
    assert os.environ.get(VISIBLE) == (None if driver else "")


def test_a_choice_of_devices_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "1")
    assert not settle_absent_driver() and os.environ[VISIBLE] == "1"
