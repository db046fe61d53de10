"""What was proven of the kernels on a device: which of them ran right there, and no slower than PyTorch.

``wsss_rt.kernels.proof`` finds it out, in processes of its own. Here is the file that keeps it, and what this
process remembers of it: a dispatcher asks in the middle of a model, where nothing may take long.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsss_rt.io.file_lock import wait_for_lock
from wsss_rt.kernels._cache import cache_file, write_json

FORMAT = 1
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
#: Every operator, as dispatchers name it, and the folder that its kernel stands in.
FOLDERS = {
    "attention_aggregate": "attention_aggregate",
    "affinity_propagate": "affinity_propagate",
    "select_tokens": "masked_reattention",
    "masked_reattention": "masked_reattention",
    "spread_mass": "masked_reattention",
    "map_to_mask": "map_to_mask",
    "map_planes": "map_to_mask",
    "planes_to_mask": "map_to_mask",
    "dense_crf": "dense_crf",
    "random_walk": "random_walk",
}
#: Operators whose kernel computes in the type that it is given; each type is proven by itself.
TYPED = frozenset({"attention_aggregate", "affinity_propagate", "masked_reattention"})

_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_known: dict[torch.device, Mapping[str, Outcome]] = {}
_taken: dict[torch.device, frozenset[tuple[str, torch.dtype]]] = {}
_exact = True


@dataclass(frozen=True)
class Outcome:
    """What the check of an operator came to, in one type where it has several.

    Attributes:
        passed: right, and not slower.
        reason: in words.
        figures: ``error`` and ``allowed`` of the worst output, ``triton_ms``, ``reference_ms``; those known.
        kept: False where another try may end otherwise: memory was short, or a device was busy.
    """

    passed: bool
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict)
    kept: bool = True

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"passed": self.passed, "reason": self.reason, "figures": dict(self.figures)}


def subject(operator: str, dtype: torch.dtype) -> str:
    """What an outcome is of: ``random_walk``, ``attention_aggregate bfloat16``."""
    return f"{operator} {str(dtype).removeprefix('torch.')}" if operator in TYPED else operator


def subjects(
    operators: Iterable[str] | None = None, dtypes: Iterable[torch.dtype] | None = None
) -> list[str]:
    """Those of these operators in these types; of all by default."""
    types = DTYPES if dtypes is None else tuple(dtypes)
    every = (
        subject(operator, dtype)
        for operator in (FOLDERS if operators is None else operators)
        for dtype in types
    )
    return list(dict.fromkeys(every))


def takes(operator: str, tensors: tuple[Tensor, ...]) -> bool:
    """Whether an operator's kernel is proven for all these tensors, on the device of the first.

    While torch's compiler traces only memory is asked; a file is read once for each device.
    """
    global _exact
    device = tensors[0].device
    if not torch.compiler.is_dynamo_compiling():
        _exact = exact_products()
        if device not in _taken:
            recall(device)
    taken = _taken.get(device, frozenset())
    if not all((operator, tensor.dtype) in taken for tensor in tensors):
        return False
    # with TF32 a float32 kernel is another one, which was not checked
    return _exact or operator not in TYPED or all(tensor.dtype != torch.float32 for tensor in tensors)


def exact_products() -> bool:
    """Whether float32 is multiplied whole, without TF32."""
    return torch.get_float32_matmul_precision() == "highest"


def recall(device: torch.device) -> Mapping[str, Outcome]:
    """Read what is known of a device, and let this process go by it."""
    found: Mapping[str, Outcome] = {}
    # without a working Triton there is nothing to prove
    with suppress(ImportError):
        if device.type == "cpu" or torch.cuda.is_available():
            found = read(identity(device))
    go_by(device, found)
    return found


def go_by(device: torch.device, outcomes: Mapping[str, Outcome]) -> None:
    """Let this process take what these outcomes say, and nothing else."""
    global _exact
    # the compiler cannot trace the question
    _exact = exact_products()
    _known[device] = outcomes
    _taken[device] = frozenset(
        (operator, dtype)
        for operator in FOLDERS
        for dtype in DTYPES
        if (outcome := outcomes.get(subject(operator, dtype))) is not None and outcome.passed
    )


def known(device: torch.device) -> Mapping[str, Outcome]:
    """What this process goes by."""
    return _known[device] if device in _known else recall(device)


def forget() -> None:
    """Read files again when next asked."""
    _known.clear()
    _taken.clear()


@functools.cache
def identity(device: torch.device) -> Mapping[str, str]:
    """Everything that the outcome of a check depends on; a CPU is Triton's interpreter on it.

    Raises:
        ImportError: Triton is not installed, or does not load.
    """
    import triton

    name, capability, driver, tiles = "Triton's interpreter", "", "", b""
    if device.type != "cpu":
        from wsss_rt.kernels._tiles import tuned_path

        name, driver = torch.cuda.get_device_name(device), _driver()
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        with suppress(OSError):
            tiles = tuned_path(name).read_bytes()
    return {
        "device": name,
        "compute_capability": capability,
        "driver": driver,
        "torch": f"{torch.__version__} {torch.version.cuda or torch.version.hip or ''}".strip(),
        "triton": triton.__version__,
        "kernels": _sources(),
        # tuned ones replace those of the table, and are then what runs
        "tiles": hashlib.sha256(tiles).hexdigest()[:16],
    }


def proof_file(of: Mapping[str, str]) -> Path:
    """The file of an identity: two versions in two environments keep one each."""
    digest = hashlib.sha256(json.dumps(dict(of), sort_keys=True).encode()).hexdigest()[:16]
    return cache_file(f"{of['device']} proof {digest}")


def read(of: Mapping[str, str]) -> dict[str, Outcome]:
    """What the file of an identity holds; nothing where it is absent, torn, older or another's."""
    try:
        stored = json.loads(proof_file(of).read_bytes())
        if stored["format"] != FORMAT or stored["identity"] != dict(of):
            return {}
        return {name: outcome_of(entry) for name, entry in stored["outcomes"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # a cache may be lost, and what is not understood proves nothing
        return {}


def store(of: Mapping[str, str], outcomes: Mapping[str, Outcome]) -> None:
    """Add outcomes to the file of an identity, in place of earlier ones of the same subjects.

    Raises:
        WsssError: it cannot be written.
    """
    merged = read(of) | {name: outcome for name, outcome in outcomes.items() if outcome.kept}
    entries = {name: outcome.as_dict() for name, outcome in merged.items()}
    write_json(proof_file(of), {"format": FORMAT, "identity": dict(of), "outcomes": entries})


def outcome_of(entry: Any) -> Outcome:
    """The outcome that a dict describes.

    Raises:
        ValueError: it describes none.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("passed"), bool):
        raise ValueError("an outcome says whether it passed")
    reason, figures = entry.get("reason"), entry.get("figures")
    if not isinstance(reason, str) or not isinstance(figures, dict):
        raise ValueError("an outcome has a reason and figures")
    try:
        numbers = {str(name): float(value) for name, value in figures.items()}
    except (TypeError, OverflowError) as error:
        raise ValueError("figures are numbers") from error
    return Outcome(entry["passed"], reason, numbers, entry.get("kept", True) is True)


@contextmanager
def locked(
    of: Mapping[str, str],
    seconds: float,
    waiting: Callable[[], None],
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[bool]:
    """Hold the lock of an identity, which frees itself when its process dies.

    Args:
        of: the identity.
        seconds: how long to wait for another process.
        waiting: called once, before a wait.
        stop: asked while it waits; True ends that.

    Yields:
        Whether it is held, or nobody can hold it: False after a wait alone.
    """
    path = proof_file(of).with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        # nothing can be kept there either
        yield True
        return
    try:
        yield _acquired(descriptor, seconds, waiting, stop)
    finally:
        os.close(descriptor)


def _acquired(descriptor: int, seconds: float, waiting: Callable[[], None], stop: Callable[[], bool]) -> bool:
    try:
        return wait_for_lock(descriptor, seconds, waiting, stop)
    except OSError:
        # a file system without locks: files are replaced whole, so that two checks cost time alone
        return True


@functools.cache
def _sources() -> str:
    """Of all modules of this package: a kernel hangs on what calls it, too."""
    digest, folder = hashlib.sha256(), Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _driver() -> str:
    """The kernel module's version, and what CUDA the driver's library speaks; either may be missing."""
    found = []
    with suppress(OSError):
        if number := re.search(r"\d+\.\d+(\.\d+)?", _DRIVER_FILE.read_text(errors="replace")):
            found.append(number[0])
    version = ctypes.c_int(0)
    with suppress(OSError, AttributeError):
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) == 0:
            found.append(f"CUDA {version.value // 1000}.{version.value % 1000 // 10}")
    return ", ".join(found)
