"""Runs checks in processes of their own, and says of each how it ended, whatever way that was."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from wsss_rt.kernels._proven import Outcome, outcome_of

#: Seconds for one operator in one type, compilation included; and for a process to start.
OPERATOR_SECONDS = 120.0
START_SECONDS = 180.0
# of a killed process: one that a driver holds on to may never go
_END_SECONDS = 10.0
_POLL_SECONDS = 0.2
_KEPT_BYTES = 1 << 16


def run_checks(
    names: Sequence[str],
    device: torch.device,
    *,
    identity: Mapping[str, str],
    seconds: float = OPERATOR_SECONDS,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[str, Outcome]]:
    """Each subject's outcome, as soon as it is known.

    A process that dies, hangs or talks nonsense costs the operator that it was at; a new one goes on behind
    it. Where a process comes to nothing at all, the subjects that are left could not be checked.

    Args:
        names: subjects, in order.
        device: what they are checked on.
        identity: of the device as this process sees it; a process that sees another one is not believed.
        seconds: for each.
        stop: asked several times a second; True ends it without further outcomes.
    """
    left = list(names)
    while left:
        before, reason = len(left), ""
        try:
            with _Child([*_command(device), *left], device) as child:
                for name, outcome in child.outcomes(left, identity, seconds, stop):
                    left.remove(name)
                    yield name, outcome
                reason = child.reason
        except OSError as error:
            reason = f"no process can be started: {error.strerror or error}"
        if stop():
            return
        if len(left) == before:
            for name in left:
                yield name, Outcome(False, f"could not be checked: {reason}", {}, kept=False)
            return


def _command(device: torch.device) -> list[str]:
    # without -P, modules of the folder that the user happens to be in would go before the installed ones
    return [sys.executable, "-P", "-m", "wsss_rt.kernels.proof.child", str(device)]


class _Child:
    """A running child; leaving ends it, whatever it is at."""

    def __init__(self, words: Sequence[str], device: torch.device) -> None:
        self.reason, self._until = "", time.monotonic() + START_SECONDS
        self._process = subprocess.Popen(
            list(words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(device),
            # the compilers that it calls end with it, and Ctrl-C is ours to answer
            process_group=0,
        )
        self._lines, self._complaints = b"", b""
        self._nonsense = ""

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        # of one that was waited for the number may be another's by now
        if self._process.poll() is None:
            self._kill()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def outcomes(
        self, names: Sequence[str], identity: Mapping[str, str], seconds: float, stop: Callable[[], bool]
    ) -> Iterator[tuple[str, Outcome]]:
        """Outcomes of some of ``names``; :attr:`reason` then says why there are no more."""
        at: str | None = None
        waiting = set(names)
        for message in self._messages(stop):
            if message.get("identity", dict(identity)) != dict(identity):
                self.reason = "its process saw another device or other libraries"
                return
            begun = message.get("begin")
            if at is None and isinstance(begun, str) and begun in waiting:
                at = begun
                self._until = time.monotonic() + seconds
            elif at is not None and message.get("end") == at:
                try:
                    outcome = outcome_of(message)
                except ValueError:
                    continue
                waiting.remove(at)
                yield at, outcome
                at, self._until = None, time.monotonic() + START_SECONDS
        if stop():
            return
        late = time.monotonic() >= self._until
        self.reason = self._ending(seconds if at is not None else START_SECONDS, late)
        if at is not None:
            yield at, Outcome(False, self.reason)

    def _messages(self, stop: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        """What the child says, until it ends, or the time is up."""
        with selectors.DefaultSelector() as selector:
            for pipe in (self._process.stdout, self._process.stderr):
                assert pipe is not None
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map():
                # a grandchild may hold the pipes open longer than the child lives
                ended = self._process.poll() is not None
                ready = selector.select(0 if ended else _POLL_SECONDS)
                for key, _ in ready:
                    data = os.read(key.fd, _KEPT_BYTES)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is self._process.stderr:
                        self._complaints = (self._complaints + data)[-_KEPT_BYTES:]
                    else:
                        yield from self._parsed(data)
                if (ended and not ready) or stop() or time.monotonic() >= self._until:
                    return

    def _parsed(self, data: bytes) -> Iterator[dict[str, Any]]:
        *lines, self._lines = (self._lines + data).split(b"\n")
        # whatever is longer is none of our lines
        self._lines = self._lines[-_KEPT_BYTES:]
        for line in lines:
            with suppress(ValueError, RecursionError):
                if isinstance(message := json.loads(line), dict):
                    yield message
                    continue
            self._nonsense = _printable(line)

    def _ending(self, seconds: float, late: bool) -> str:
        """How the child ended, in words."""
        if late:
            behind = "" if self._kill() else ", and cannot be killed"
            return f"gave no answer within {seconds:.0f} s{behind}"
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its pipe and did not end"
        last = [line for line in self._complaints.splitlines() if line.strip()]
        said = _printable(last[-1]) if last else _printable(self._lines) or self._nonsense
        behind = f": {said}" if said else ""
        if code < 0:
            return f"killed by {_signal_name(-code)}{behind}"
        return f"ended with status {code} and no result{behind}"

    def _kill(self) -> bool:
        """Whether it is gone."""
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        return True


def _environment(device: torch.device) -> dict[str, str]:
    """This process's own, with the modules that it has, and Triton's interpreter for a CPU alone."""
    found = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if device.type == "cpu":
        found["TRITON_INTERPRET"] = "1"
    found["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return found


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _printable(line: bytes) -> str:
    text = line.decode("utf-8", "replace").strip()
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]
