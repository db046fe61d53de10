"""Kernels proven on the user's own device: right by the rule of ``rule.py``, and no slower than PyTorch.

``auto`` takes a kernel on a GPU only where it passed on this very GPU, driver, torch, Triton and source. The
check runs once, in processes of its own (``watch.py``, ``child.py``), before a command first uses a GPU; what
it found lies in the user's cache. ``python -m wsss_rt.kernels.proof`` checks everything anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from wsss_rt.errors import WsssError
from wsss_rt.kernels import _dispatch, _proven
from wsss_rt.kernels._proven import Outcome, subjects
from wsss_rt.kernels.proof.watch import run_checks

__all__ = ["Standing", "ensure_proof", "standing", "subjects"]

UNCHECKED = "not yet checked on this GPU: run `wsss-rt doctor --kernels`"
# how long to wait for another process that checks the same device
WAIT_SECONDS = 900.0

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Standing:
    """What an operator runs where ``WSSS_RT_KERNELS`` leaves the choice, and why.

    Attributes:
        path: ``triton`` or ``reference``.
        reason: in words, for a person.
    """

    path: Literal["triton", "reference"]
    reason: str

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return {"path": self.path, "reason": self.reason}


_TF32 = Standing("reference", "proven in whole float32 alone, and torch is set to multiply in TF32 here")


def standing(device: str | torch.device = "cuda", names: Iterable[str] | None = None) -> dict[str, Standing]:
    """What runs on a device, by subject: an operator, with its type where each is proven by itself.

    Reads what is known, and checks nothing.

    Args:
        device: ``cuda`` is the current one.
        names: subjects, as :func:`subjects` gives them; all by default.
    """
    where, wanted = settled(device), subjects() if names is None else list(names)
    if (why := hindrance(where)) is not None:
        return {name: Standing("reference", why) for name in wanted}
    if _dispatch.kernel_mode() == "triton":
        return {name: Standing("triton", f"{_dispatch.VARIABLE}=triton asks for it") for name in wanted}
    known, exact = _proven.known(where), _proven.exact_products()
    return {
        name: _TF32 if not exact and name.endswith(" float32") else _standing(known.get(name))
        for name in wanted
    }


def ensure_proof(
    device: str | torch.device = "cuda",
    names: Iterable[str] | None = None,
    *,
    tell: Tell | None = None,
    anew: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Standing]:
    """Check what was not yet checked on this device; to be called before the first use, never within it.

    Does nothing where kernels are not ``auto``'s to choose: off a GPU, without Triton, with
    ``WSSS_RT_KERNELS`` set to something else. Of two processes the second waits for the first, and goes by
    what that found; after a quarter of an hour it goes on with the reference. A folder that cannot be written
    costs a check in every process.

    Args:
        device: ``cuda`` is the current one.
        names: subjects; all by default.
        tell: gets a line before anything that takes long, and one with what it came to; stderr by default.
        anew: check also what was checked before.
        stop: asked several times a second, also while it waits; True ends it, and what was found so far is
            kept.

    Returns:
        As :func:`standing`.
    """
    where, wanted = settled(device), subjects() if names is None else list(names)
    if hindrance(where) is not None or (_dispatch.kernel_mode() != "auto" and not anew):
        return standing(where, wanted)
    say = tell or _to_stderr
    try:
        identity = _proven.identity(where)
    except ImportError:
        return standing(where, wanted)
    known = _proven.known(where)
    if anew or any(name not in known for name in wanted):
        found = _check(where, wanted, identity, say, anew=anew, stop=stop)
        _proven.go_by(where, {**known, **found})
    return standing(where, wanted)


def settled(device: str | torch.device) -> torch.device:
    """The device with its number, as tensors name it."""
    found = torch.device(device)
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0)
    return found


def hindrance(device: torch.device) -> str | None:
    """Why no kernel can be proven on a device, in words, or None."""
    if _dispatch.kernel_mode() == "reference":
        return f"{_dispatch.VARIABLE}=reference asks for it"
    if device.type != "cuda":
        return f"kernels run on a GPU, and this is a {device.type}"
    if not _dispatch.triton_installed():
        return "triton is not installed"
    if _dispatch.interpreting():
        return "TRITON_INTERPRET is set, and an interpreted kernel is slow"
    return None if torch.cuda.is_available() else "torch sees no GPU"


def summary(outcomes: Mapping[str, Standing]) -> str:
    """One line: how many take their kernel, and which do not, with the reasons."""
    refused: dict[str, list[str]] = {}
    for name, found in outcomes.items():
        if found.path != "triton":
            refused.setdefault(found.reason, []).append(name)
    taken = len(outcomes) - sum(map(len, refused.values()))
    line = f"{taken} of {len(outcomes)} kernels are taken"
    return line + "".join(f"; not {', '.join(names)}: {reason}" for reason, names in refused.items())


def _check(
    device: torch.device,
    wanted: Sequence[str],
    identity: Mapping[str, str],
    say: Tell,
    *,
    anew: bool,
    stop: Callable[[], bool],
) -> dict[str, Outcome]:
    """What is known once this is over; each outcome is written at once, and not lost with this process."""
    name = identity["device"]

    def wait() -> None:
        say(f"another process checks the Triton kernels on {name}; waiting for it")

    with _proven.locked(identity, WAIT_SECONDS, wait, stop) as held:
        # whoever had the lock may have found it out meanwhile
        found = _proven.read(identity)
        missing = [subject for subject in wanted if anew or subject not in found]
        if not missing or stop():
            return found
        if not held:
            say("it has not ended; going on with PyTorch where nothing is known of a kernel")
            return found
        say(
            f"checking {len(missing)} of the Triton kernels on {name}, once; this may take minutes "
            f"({_dispatch.VARIABLE}=reference does without)"
        )
        writable = True
        for subject, outcome in run_checks(missing, device, identity=identity, stop=stop):
            found[subject] = outcome
            try:
                _proven.store(identity, {subject: outcome})
            except WsssError as error:
                if writable:
                    say(f"what is found cannot be kept: {error}; set XDG_CACHE_HOME to a folder of yours")
                writable = False
        if not stop():
            say(summary({subject: _standing(found.get(subject)) for subject in missing}))
    return found


def _standing(outcome: Outcome | None) -> Standing:
    if outcome is None:
        return Standing("reference", UNCHECKED)
    return Standing("triton" if outcome.passed else "reference", outcome.reason)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
