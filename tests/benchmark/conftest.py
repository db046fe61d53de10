"""What tests of several benchmarks need."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def tables(root_dir: Path) -> ModuleType:
    """benchmarks/tables.py, which is a script and no module."""
    spec = importlib.util.spec_from_file_location("tables", root_dir / "benchmarks" / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
