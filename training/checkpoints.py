"""Run folders, and weights from elsewhere; nothing that a user was sent is ever unpickled.

A run folder holds ``weights.safetensors``, ``config.json``, ``recommended.json`` where validation had masks,
``log.jsonl``, ``curve.png``, and while training is unfinished ``state.pt`` to resume from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from wsss_rt.errors import WsssError
from wsss_rt.io.atomic import write_atomic
from wsss_rt.model_card import InputSpec, Recommended

WEIGHTS, CONFIG, RECOMMENDED, STATE = "weights.safetensors", "config.json", "recommended.json", "state.pt"
RUN_VERSION = 1
_HASH_KEY = "sha256"


@dataclass(frozen=True)
class RunConfig:
    """What a run folder says of its model.

    Attributes:
        method: name as in ``create_model``.
        classes: names in output order, without background.
        model: keyword arguments of ``create_model`` beside ``num_classes``.
        input: how pixels become the input tensor at labelling time.
        training: data, seed, recipe, images seen, time, versions, machine; free-form, for the model card.
        quality: measured figures with the data that they were measured on.
        recommended: thresholds that validation chose.
        recommended_options: method options that validation chose (e.g. ``{"affinity": False}``);
            :func:`load_run` applies them on top of ``model``.
    """

    method: str
    classes: tuple[str, ...]
    model: dict[str, Any]
    input: InputSpec = field(default_factory=InputSpec)
    training: dict[str, Any] = field(default_factory=dict)
    quality: dict[str, Any] = field(default_factory=dict)
    recommended: Recommended = field(default_factory=Recommended)
    recommended_options: dict[str, Any] = field(default_factory=dict)


def save_run(folder: Path, model: torch.nn.Module | Mapping[str, torch.Tensor], config: RunConfig) -> None:
    """Write weights, config and recommended values; each file appears whole or not at all.

    Args:
        folder: created where missing.
        model: the model, or its state dict (e.g. of averaged weights).
        config: what to say of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict() if isinstance(model, torch.nn.Module) else model
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    # one key alone: safetensors writes several in an order of their own, and equal runs should be equal files
    write_atomic(folder / WEIGHTS, save(tensors, metadata={_HASH_KEY: _digest(tensors)}))
    raw = {"version": RUN_VERSION, **asdict(config)}
    recommended = {**raw.pop("recommended"), "options": raw.pop("recommended_options")}
    write_atomic(folder / CONFIG, _json_bytes(raw))
    if config.recommended != Recommended():
        write_atomic(folder / RECOMMENDED, _json_bytes(recommended))


def load_run(path: str | Path, *, apply_recommended: bool = True) -> tuple[torch.nn.Module, RunConfig]:
    """Model of a run, on the CPU and in eval mode.

    Args:
        path: a run folder, or the ``weights.safetensors`` in one.
        apply_recommended: build the model with the method options that validation chose.

    Raises:
        WsssError: no run there, or its files are damaged or do not fit each other.
    """
    from wsss_rt.training.models import create_model

    folder = Path(path)
    weights = folder / WEIGHTS
    if folder.is_file():
        weights, folder = folder, folder.parent
    config = read_config(folder)
    state = read_state_dict(weights)
    options = {**config.model, **(config.recommended_options if apply_recommended else {})}
    model = create_model(config.method, num_classes=len(config.classes), **options)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise WsssError(
            f"the weights {weights} do not fit the model of {folder / CONFIG}",
            why=" ".join(str(error).split())[:300],
            code="weights_mismatch",
        ) from error
    return model.eval(), config


def read_config(folder: Path) -> RunConfig:
    """The config of a run folder, with its recommended values.

    Raises:
        WsssError: no run there, or a file that cannot be understood.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise WsssError(
            f"{folder} is not a run folder",
            why=f"it holds no {CONFIG}",
            fix="give the folder that `wsss-rt train --out` wrote",
            code="no_run",
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = raw.pop("version")
        if version > RUN_VERSION:
            raise WsssError(
                f"{path} was written by a newer wsss-rt", fix="upgrade wsss-rt", code="newer_schema"
            )
        raw["classes"] = tuple(raw["classes"])
        raw["input"] = InputSpec(**_tuples(raw["input"]))
        if (folder / RECOMMENDED).is_file():
            chosen = json.loads((folder / RECOMMENDED).read_text(encoding="utf-8"))
            raw["recommended_options"] = chosen.pop("options", {})
            raw["recommended"] = Recommended(**_tuples(chosen))
        return RunConfig(**raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WsssError(f"cannot read the run in {folder}", why=str(error), code="bad_run") from error


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint by name, on the CPU.

    Reads safetensors, and PyTorch files that hold nothing but tensors and plain containers. A wrapping
    ``{"model": ...}`` or ``{"state_dict": ...}`` and a ``module.`` prefix are removed.

    Raises:
        WsssError: unreadable, damaged, or it holds objects that only unpickling could bring back.
    """
    if not path.is_file():
        raise WsssError(f"no weights at {path}", code="no_weights")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        # argparse.Namespace holds values only; research checkpoints often store their arguments in one
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WsssError(
            f"refusing to unpickle {path}",
            why=f"beside tensors it holds {_unsafe_content(path)}; unpickling such a file can run any code",
            fix="where you trust it, save its state dict alone (or as safetensors) and give that file",
            code="unsafe_checkpoint",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WsssError(f"cannot read {path}", why=str(error)[:200], code="weights_damaged") from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise WsssError(
            f"{path} holds no state dict", why=f"it is a {type(content).__name__}", code="no_weights"
        )
    strangers = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        raise WsssError(
            f"{path} holds no state dict",
            why=f"not tensors: {', '.join(map(str, strangers[:5]))}",
            code="no_weights",
        )
    if all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): value for name, value in content.items()}
    return dict(content)


def load_official_checkpoint(
    path: Path, method: str, *, classes: Sequence[str], model: Mapping[str, Any] | None = None
) -> tuple[torch.nn.Module, RunConfig]:
    """Model from a checkpoint that the method's official code wrote, on the CPU and in eval mode.

    Args:
        path: ``.pth`` or ``.safetensors``.
        method: name as in ``create_model``.
        classes: names in the order of the checkpoint's outputs.
        model: keyword arguments of ``create_model``; missing ones take the official defaults.

    Raises:
        WsssError: unreadable or unsafe file, or keys and shapes that do not fit (they are listed).
    """
    from wsss_rt.training.models import create_model, load_official

    options = dict(model or {})
    built = create_model(method, num_classes=len(classes), **options)
    load_official(built, read_state_dict(path))
    patch = getattr(built, "patch_size", 16)
    policy = getattr(built, "official_input", lambda: InputSpec(patch=int(patch)))
    config = RunConfig(
        method=method,
        classes=tuple(classes),
        model=options,
        input=policy(),
        recommended=getattr(built, "official_settings", Recommended()),
        training={"source": "official checkpoint", "file": path.name, "file_sha256": _file_sha256(path)},
    )
    return built.eval(), config


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise WsssError(f"cannot read {path}", why=str(error)[:200], code="weights_damaged") from error
    # a flipped bit in safetensors loads without a word, so our own files carry a hash of their tensors
    if _HASH_KEY in metadata and metadata[_HASH_KEY] != _digest(tensors):
        raise WsssError(
            f"the weights {path} are damaged or were changed",
            why="their bytes do not match the SHA-256 that they were written with",
            fix="copy them again from where they came",
            code="weights_damaged",
        )
    return tensors


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _unsafe_content(path: Path) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError, pickle.UnpicklingError):
        # the legacy format cannot be listed without reading it as a pickle
        return "objects in PyTorch's legacy format"
    return ", ".join(sorted(names)[:8]) or "objects in PyTorch's legacy format"


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_bytes(raw: Mapping[str, Any]) -> bytes:
    return (json.dumps(raw, indent=2, ensure_ascii=False) + "\n").encode()


def _tuples(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
