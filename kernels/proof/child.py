"""The process in which kernels are checked: whatever a kernel does to it costs that kernel alone.

    python -m wsss_rt.kernels.proof.child cuda:0 "random_walk" "attention_aggregate bfloat16" ...

It writes a JSON line as it begins and as it ends each of them, and ends with the first that fails by an
exception: an illegal access leaves a context in which nothing that follows means anything.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

import torch

from wsss_rt.errors import WsssError
from wsss_rt.kernels._dispatch import watched
from wsss_rt.kernels._proven import FOLDERS, Outcome, identity
from wsss_rt.kernels.proof.poison import poisoned_memory
from wsss_rt.kernels.proof.rule import Check, Verdict
from wsss_rt.kernels.proof.trial import event_clock, trial

# what a context that another process keeps to itself, or memory that is full, says
_PASSING = ("out of memory", "busy or unavailable", "CUBLAS_STATUS_ALLOC_FAILED")


def check_of(name: str) -> tuple[str, Check, torch.dtype]:
    """The operator, check and type of a subject (``wsss_rt.kernels._proven.subject``)."""
    operator, _, kind = name.partition(" ")
    module = importlib.import_module(f"wsss_rt.kernels.{FOLDERS[operator]}.cases")
    return operator, module.CHECKS[operator], getattr(torch, kind) if kind else torch.float32


def prove(name: str, device: torch.device) -> Outcome:
    """Judge an operator's kernel, and let it run against its reference; on a CPU judge it, in small cases."""
    operator, check, dtype = check_of(name)
    on_gpu = device.type != "cpu"
    with torch.no_grad():
        with poisoned_memory(), watched() as paths:
            verdicts = list(check.judge(str(device), dtype, not on_gpu))
        if wrong := _worst(verdicts):
            return _refused(wrong)
        if not any(ran == operator and path.startswith("triton") for ran, path in paths):
            return Outcome(False, "its check ran no kernel")
        worst = max(verdicts, key=lambda verdict: verdict.kernel / (verdict.limit or 1.0))
        figures = {"error": worst.kernel, "allowed": worst.limit}
        if not on_gpu:
            return Outcome(True, "right in Triton's interpreter, which times nothing", figures)
        ms = trial(check.work(str(device), dtype), event_clock)
    return timed(ms, figures)


def timed(ms: dict[str, float], figures: dict[str, float]) -> Outcome:
    """The outcome of a kernel that is right, by its times: it must not be slower."""
    speed = ms["reference"] / ms["triton"]
    figures |= {f"{mode}_ms": round(taken, 5) for mode, taken in ms.items()}
    if speed < 1:
        return Outcome(False, f"slower: {speed:.2f} times the reference's speed", figures)
    return Outcome(True, f"{speed:.2f} times the reference's speed", figures)


def _worst(verdicts: Sequence[Verdict]) -> Verdict | None:
    return next((verdict for verdict in verdicts if not verdict.passed), None)


def _refused(wrong: Verdict) -> Outcome:
    figures = {"error": wrong.kernel, "allowed": wrong.limit}
    finite = {name: value for name, value in figures.items() if math.isfinite(value)}
    where = f"{wrong.output} of {wrong.case}"
    return Outcome(False, f"wrong: error {wrong.kernel:.0e}, allowed {wrong.limit:.0e} ({where})", finite)


def failed(error: Exception) -> Outcome:
    """The outcome of a check that ended with an exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = type(error).__name__
    if lines:
        # Triton shows the source first
        words += f": {lines[-1 if words == 'CompilationError' else 0]}"
    if isinstance(error, WsssError):
        words = str(error)
    passing = isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _PASSING)
    return Outcome(False, f"could not be checked: {words}"[:300] if passing else words[:300], {}, not passing)


def main(words: Sequence[str]) -> int:
    """Check what the command line names; 1 after an exception, with which the rest is left undone."""
    # libraries print: the parent's pipe is for our own lines alone
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def say(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message) + "\n")
        pipe.flush()

    try:
        device = torch.device(words[0])
        if device.type != "cpu":
            torch.cuda.set_device(device)
        say({"identity": dict(identity(device))})
    except Exception as error:  # noqa: BLE001 - the parent shows our last line, and torch's own are none to show
        print(failed(error).reason, file=sys.stderr)
        return 1
    for name in words[1:]:
        say({"begin": name})
        try:
            outcome = prove(name, device)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this kernel's, and is what is said of it
            outcome = failed(error)
            say({"end": name, "kept": outcome.kept, **outcome.as_dict()})
            return 1
        say({"end": name, **outcome.as_dict()})
    return 0


def _end_with_parent() -> None:
    """The parent holds our standard input open, and writes nothing: it ends when the parent does."""
    # not by sys.stdin, whose lock this thread would hold on to while the interpreter shuts down, and abort it
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
