"""Leaves out everything that trains where torch is absent; readers of data do not need it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_WITHOUT_TORCH = {"test_readers.py"}
# looking for it is enough: importing takes seconds that reading data need not wait for
collect_ignore = [
    path.name
    for path in Path(__file__).parent.glob("test_*.py")
    if importlib.util.find_spec("torch") is None and path.name not in _WITHOUT_TORCH
]
