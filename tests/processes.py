"""Python code in an interpreter of its own, for what only a fresh one can show."""

from __future__ import annotations

import subprocess
import sys


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` to its end; output and errors as text."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
