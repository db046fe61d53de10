"""Run folders and foreign weights: what loads, and what is refused with its reason."""

from __future__ import annotations

import argparse
import json
import pathlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from wsss_rt.errors import WsssError
from wsss_rt.model_card import InputSpec, Recommended
from wsss_rt.training.checkpoints import (
    RunConfig,
    load_official_checkpoint,
    load_run,
    read_state_dict,
    save_run,
)
from wsss_rt.training.models import create_model

CLASSES = ("ant", "bee", "cat")
OPTIONS: dict[str, Any] = {"backbone": "vit_test_tiny", "img_size": 64, "layers_fused": 2}


def build() -> torch.nn.Module:
    torch.manual_seed(3)
    return create_model("mctformer-v2", num_classes=3, **OPTIONS)


def record(**changes: Any) -> RunConfig:
    spec = InputSpec(patch=8, size_policy="short_side", size=160)
    return RunConfig(method="mctformer-v2", classes=CLASSES, model=OPTIONS, input=spec, **changes)


def test_a_run_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    model = build()
    chosen = Recommended(background=0.3, tag_thresholds=(0.1, 0.2, 0.3), provenance="a test")
    saved = record(recommended=chosen, recommended_options={"affinity": False}, training={"seed": 1})
    save_run(tmp_path / "run", model, saved)
    for path in (tmp_path / "run", tmp_path / "run" / "weights.safetensors"):
        loaded, config = load_run(path)
        assert config == saved and not loaded.training
        assert loaded.affinity is False and loaded.layers_fused == 2
        for name, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)
    plain, _ = load_run(tmp_path / "run", apply_recommended=False)
    assert plain.affinity is True


def test_a_changed_bit_in_the_weights_is_noticed(tmp_path: Path) -> None:
    save_run(tmp_path, build(), record())
    path = tmp_path / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(WsssError, match="damaged or were changed"):
        load_run(tmp_path)
    path.write_bytes(bytes(data)[:-100])
    with pytest.raises(WsssError, match="cannot read .*weights.safetensors"):
        load_run(tmp_path)


def test_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(WsssError, match="is not a run folder.*config.json"):
        load_run(tmp_path)
    save_run(tmp_path, build(), record())
    config = tmp_path / "config.json"
    good = config.read_text()
    config.write_text(good[:50])
    with pytest.raises(WsssError, match="cannot read the run"):
        load_run(tmp_path)
    config.write_text(json.dumps(json.loads(good) | {"version": 99}))
    with pytest.raises(WsssError, match="newer wsss-rt"):
        load_run(tmp_path)
    config.write_text(json.dumps(json.loads(good) | {"classes": ["ant", "bee"]}))
    with pytest.raises(WsssError, match="do not fit the model"):
        load_run(tmp_path)


def test_an_official_checkpoint_loads_from_pth_and_safetensors(tmp_path: Path) -> None:
    state = build().state_dict()
    torch.save({"model": state, "args": argparse.Namespace(lr=1.0)}, tmp_path / "a.pth")
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "b.pth")
    save_file(dict(state), tmp_path / "c.safetensors")
    for name in ("a.pth", "b.pth", "c.safetensors"):
        model, config = load_official_checkpoint(
            tmp_path / name, "mctformer-v2", classes=CLASSES, model=OPTIONS
        )
        assert torch.equal(model.state_dict()["cls_token"], state["cls_token"]) and not model.training
        assert config.classes == CLASSES and config.input.patch == 8
        assert config.training["file"] == name and len(config.training["file_sha256"]) == 64


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return pathlib.Path.touch, (self.target,)


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_is_unpickled(tmp_path: Path, legacy: bool) -> None:
    trap = tmp_path / "was_run"
    content = {"model": build().state_dict(), "extra": Payload(trap)}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WsssError, match="refusing to unpickle") as caught:
        read_state_dict(tmp_path / "x.pth")
    assert not trap.exists() and caught.value.code == "unsafe_checkpoint"
    if not legacy:
        assert "Path" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read|refusing"),
        (b"hello, this is text", "cannot read|refusing"),
        ({"model": {"a": 1}}, "not tensors: a"),
        ([1, 2], "it is a list"),
    ],
)
def test_what_holds_no_weights_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(WsssError, match=message):
        read_state_dict(path)
    with pytest.raises(WsssError, match="no weights at"):
        read_state_dict(tmp_path / "absent.pth")


def test_keys_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = dict(build().state_dict())
    state["blocks.0.extra"] = state.pop("cls_token")
    state["norm.weight"] = torch.zeros(5)
    torch.save({"model": state}, tmp_path / "x.pth")
    with pytest.raises(WsssError) as caught:
        load_official_checkpoint(tmp_path / "x.pth", "mctformer-v2", classes=CLASSES, model=OPTIONS)
    text = str(caught.value)
    assert "missing: cls_token" in text and "extra: blocks.0.extra" in text and "norm.weight (5,)" in text
