"""How much memory something takes at its peak, beyond what the process had before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@dataclass
class Growth:
    """Filled when the block ends.

    Attributes:
        bytes: peak of the resident memory within the block, less what was resident before it; None where the
            system does not tell.
    """

    bytes: int | None = None


@contextmanager
def peak_growth() -> Iterator[Growth]:
    """Measure a block; blocks do not nest."""
    found = Growth()
    try:
        # 5 sets the kernel's high-water mark back to what is resident now (proc(5))
        _RESET.write_text("5")
        before = _read("VmRSS")
    except OSError:
        # no Linux, or a container that forbids it
        before = None
    yield found
    peak = None if before is None else _read("VmHWM")
    if before is not None and peak is not None:
        found.bytes = max(0, peak - before)


def _read(name: str) -> int | None:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
