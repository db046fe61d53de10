"""State of an unfinished run: tensors and plain values, so that it loads without unpickling objects."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wsss_rt.errors import WsssError
from wsss_rt.io.atomic import write_atomic
from wsss_rt.training.checkpoints import CONFIG, STATE, WEIGHTS, read_config
from wsss_rt.training.config import TrainConfig, differences

_VERSION = 1


@dataclass(frozen=True)
class State:
    """Where a run stands.

    Attributes:
        config: of the run, plain values.
        fingerprint: of its data.
        step: optimizer steps taken.
        seconds: time in the loop so far.
        model: state dict.
        average: averaged weights, where there are any.
        optimizer: state dict.
    """

    config: dict[str, Any]
    fingerprint: str
    step: int
    seconds: float
    model: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor] | None
    optimizer: dict[str, Any]


def write_state(folder: Path, state: State) -> None:
    """Replace the saved state; a crash meanwhile leaves the previous one."""
    buffer = io.BytesIO()
    torch.save({"version": _VERSION, **vars(state), "config": json.dumps(state.config)}, buffer)
    write_atomic(folder / STATE, buffer.getbuffer())


def read_state(folder: Path, config: TrainConfig, fingerprint: str) -> State | None:
    """The saved state, or None where a run begins.

    Raises:
        WsssError: the state belongs to another configuration or other data, or cannot be read.
    """
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
        if raw.pop("version") != _VERSION:
            raise ValueError("it was written by another version of wsss-rt")
        state = State(**{**raw, "config": json.loads(raw["config"])})
    except Exception as error:  # torch.load has no family of errors: zip, pickle and key errors all occur
        raise WsssError(
            f"cannot resume from {path}",
            why=str(error)[:200],
            fix="start over with --no-resume",
            code="bad_state",
        ) from error
    _refuse_other(folder, differences(state.config, config.to_dict()), state.fingerprint != fingerprint)
    return state


def is_finished(folder: Path, config: TrainConfig, fingerprint: str) -> bool:
    """Whether the folder holds this very run, complete.

    Raises:
        WsssError: it holds a run of another configuration or other data.
    """
    if (folder / STATE).is_file() or not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
        return False
    training = read_config(folder).training
    changed = differences(training.get("config", {}), config.to_dict())
    _refuse_other(folder, changed, training.get("fingerprint") != fingerprint)
    return True


def remove_state(folder: Path) -> None:
    """Forget the state, once the run is complete or starts over."""
    (folder / STATE).unlink(missing_ok=True)


def _refuse_other(folder: Path, changed: list[str], other_data: bool) -> None:
    if changed or other_data:
        reasons = [*changed[:6], *(["the images or their tags changed"] if other_data else [])]
        raise WsssError(
            f"{folder} holds a run with other settings",
            why="; ".join(reasons),
            fix="give another --out, the same settings, or --no-resume to start over",
            code="other_run",
        )
