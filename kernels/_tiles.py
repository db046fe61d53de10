"""How large the tiles of a launch are: by what was timed on this device, else by a table.

The table holds, by kernel, type and architecture, tiles that Triton compiles without spilling registers
(``kernels/ahead_of_time.py``, ``tests/kernels/test_ahead_of_time.py``); nothing is tuned at import or at the
first call. What ``benchmarks/kernels/gpu.py --tune`` found on a device lies in a JSON file in the user's
cache, one for each device and Triton version, and takes precedence.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import triton
from torch import Tensor

from wsss_rt.kernels._cache import cache_file, write_json
from wsss_rt.kernels._dispatch import interpreting

#: Compute capability whose tiles are taken where no device is at hand to ask.
DEFAULT_ARCHITECTURE = 90
# tl.dot takes no side below 16
SMALLEST = 16
_chosen_architecture: int | None = None
_forced: dict[str, Tile] = {}


@dataclass(frozen=True)
class Tile:
    """The size of a program.

    Attributes:
        rows: queries of a program.
        cols: keys of a step.
        warps: of 32 threads.
        stages: of the software pipeline that loads keys.
    """

    rows: int
    cols: int
    warps: int = 4
    stages: int = 3

    def within(self, rows: int, cols: int) -> Tile:
        """This tile, no larger than the powers of two that hold so many rows and columns."""
        return Tile(fit(rows, self.rows), fit(cols, self.cols), self.warps, self.stages)


def fit(size: int, largest: int) -> int:
    """The power of two that holds ``size``, from 16 to ``largest``."""
    return max(SMALLEST, min(largest, triton.next_power_of_2(size)))


# the interpreter's time goes by steps, not by elements
_INTERPRETED = Tile(64, 64)
# first match wins: kernel, bytes of an element, least architecture
_TABLE: dict[tuple[str, int], list[tuple[int, Tile]]] = {
    ("attend", 2): [(0, Tile(128, 64, 8))],
    ("attend", 4): [(0, Tile(32, 32, 4, 2))],
    ("affinity", 2): [(0, Tile(128, 64, 8))],
    ("affinity", 4): [(0, Tile(32, 32, 4, 2))],
    ("propagate", 2): [(0, Tile(64, 32, 4))],
    ("propagate", 4): [(0, Tile(32, 32, 4, 2))],
    ("reattend", 2): [(0, Tile(64, 32, 4))],
    ("reattend", 4): [(0, Tile(32, 32, 8, 2))],
}


def tile_for(kernel: str, tensor: Tensor) -> Tile:
    """The tile of a kernel for heads (..., d) like ``tensor``.

    ``attend`` and ``affinity`` share rows and columns: the second multiplies again what the first summed, and
    another tile may sum in another order.
    """
    if kernel in _forced:
        return _forced[kernel]
    if interpreting():
        return _INTERPRETED
    width = tensor.shape[-1]
    tuned = _tuned(device_name(tensor)).get(_key(kernel, tensor.element_size(), int(width)))
    if tuned is not None:
        return tuned
    architecture = architecture_of(tensor)
    for least, tile in _TABLE[kernel, 2 if tensor.element_size() == 2 else 4]:
        if architecture >= least:
            # half as many rows where heads are twice as wide: the registers hold whole heads
            return tile if width <= 64 else replace(tile, rows=max(SMALLEST, tile.rows // 2))
    raise KeyError(kernel)


def architecture_of(tensor: Tensor) -> int:
    """Compute capability times ten: of the device, or of what :func:`for_architecture` says."""
    if _chosen_architecture is not None:
        return _chosen_architecture
    if tensor.is_cuda and torch.cuda.is_available():
        return _capability(tensor.device.index or 0)
    return DEFAULT_ARCHITECTURE


@functools.cache
def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return major * 10 + minor


@contextmanager
def for_architecture(architecture: int) -> Iterator[None]:
    """Take the tiles of this architecture, whatever device there is: to compile for another machine."""
    global _chosen_architecture
    kept, _chosen_architecture = _chosen_architecture, architecture
    try:
        yield
    finally:
        _chosen_architecture = kept


@contextmanager
def use_tile(kernel: str, tile: Tile) -> Iterator[None]:
    """Take this tile for a kernel, whatever was tuned: to time it."""
    kept = _forced.get(kernel)
    _forced[kernel] = tile
    try:
        yield
    finally:
        del _forced[kernel]
        if kept is not None:
            _forced[kernel] = kept


def device_name(tensor: Tensor) -> str | None:
    """What tuned tiles are kept under, or None where there is nothing to tune for."""
    if (
        _chosen_architecture is not None
        or interpreting()
        or not tensor.is_cuda
        or not torch.cuda.is_available()
    ):
        return None
    return torch.cuda.get_device_name(tensor.device.index or 0)


def tuned_path(device: str) -> Path:
    """``$XDG_CACHE_HOME/wsss-rt/kernels/<device>-triton-<version>.json``, or the same below ``~/.cache``."""
    return cache_file(f"{device} triton {triton.__version__}")


def remember(device: str, kernel: str, itemsize: int, head_dim: int, tile: Tile) -> Path:
    """Keep a tuned tile for this device; the file is replaced whole, so that no reader sees half of it."""
    path = tuned_path(device)
    known = {name: asdict(kept) for name, kept in _tuned(device).items()}
    known[_key(kernel, itemsize, head_dim)] = asdict(tile)
    write_json(path, known)
    _tuned.cache_clear()
    return path


def _key(kernel: str, itemsize: int, head_dim: int) -> str:
    return f"{kernel}-{itemsize * 8}bit-d{head_dim}"


@functools.cache
def _tuned(device: str | None) -> dict[str, Tile]:
    """What was tuned; nothing where the file is absent, and where it is no such file: a cache may be lost."""
    if device is None:
        return {}
    try:
        known = json.loads(tuned_path(device).read_text())
        return {name: Tile(**tile) for name, tile in known.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
