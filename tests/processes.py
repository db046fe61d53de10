"""Python code in an interpreter of its own, for what only a fresh or a second one can show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` to its end; output and errors as text."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def start_python(code: str, *words: str, says: str) -> subprocess.Popen[str]:
    """Start ``code`` from the checkout, between pipes, and wait until its first line is ``says``."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parent.parent,
    )
    assert process.stdout is not None and process.stdout.readline() == f"{says}\n"
    return process
