"""Skips everything about training where torch is absent."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="training needs the train extra")
