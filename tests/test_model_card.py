"""The seal: what was sealed reads back, and no changed byte passes."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.label_models import color_card, write_color_model
from wsss_rt import model_card
from wsss_rt.errors import WsssError
from wsss_rt.model_card import MapRule, ModelCard, read_artifact, read_card, seal


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_color_model(tmp_path / "model.onnx")


def refused(path: Path) -> WsssError:
    with pytest.raises(WsssError) as caught:
        read_card(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return caught.value


def test_a_card_reads_back_as_it_was_sealed(tmp_path: Path) -> None:
    given = color_card(
        classes=("Größe", "猫", 'a "quoted" name'),
        options={"layers_fused": 3, "affinity": False},
        training={"seed": 1, "data": ["scenes"]},
        quality={"parity": "skipped"},
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(seal(b"", given))
    card, data = read_artifact(path)
    assert data == path.read_bytes()
    assert replace(card, weights_sha256="") == given


def test_how_maps_become_pixels_is_read_and_old_cards_take_the_default() -> None:
    raw = json.loads(color_card(maps=MapRule("aligned", "peak")).to_json())
    assert ModelCard.from_json(json.dumps(raw)).maps == MapRule("aligned", "peak")
    del raw["maps"]
    assert ModelCard.from_json(json.dumps(raw)).maps == MapRule("bilinear", "minmax")
    raw["maps"] = {"upsample": "lanczos"}
    with pytest.raises(WsssError, match="lanczos"):
        ModelCard.from_json(json.dumps(raw))


def test_the_artifact_is_an_onnx_file_that_carries_the_card(artifact: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(artifact))
    onnx.checker.check_model(model)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(entries["wsss_rt"])["method"] == "color-probe"
    assert len(entries["wsss_rt_sha256"]) == 64


def test_one_changed_byte_anywhere_is_refused(artifact: Path) -> None:
    intact = artifact.read_bytes()
    rng = random.Random(5)
    seal_at = intact.rindex(b"wsss_rt_sha256")
    card_at = intact.index(b'"classes"')
    offsets = [rng.randrange(len(intact)) for _ in range(60)]
    offsets += [0, card_at - 1, card_at + 3, seal_at - 3, seal_at, seal_at + 20, len(intact) - 1]
    for offset in offsets:
        damaged = bytearray(intact)
        damaged[offset] ^= 1 << rng.randrange(8)
        artifact.write_bytes(damaged)
        assert refused(artifact).code == "model_damaged", offset


def test_a_file_cut_short_is_refused_at_any_length(artifact: Path) -> None:
    intact = artifact.read_bytes()
    for length in [*range(0, len(intact), len(intact) // 19), len(intact) - 1]:
        artifact.write_bytes(intact[:length])
        # cut before the card, nothing tells a damaged model from a foreign one
        assert refused(artifact).code in {"model_damaged", "no_card"}, length
    artifact.write_bytes(intact[:-1])
    assert refused(artifact).code == "model_damaged"


def test_bytes_after_the_seal_are_refused(artifact: Path) -> None:
    artifact.write_bytes(artifact.read_bytes() + b"\0")
    assert refused(artifact).code == "model_damaged"


def test_a_newer_schema_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(seal(b"", color_card(schema_version=model_card.SCHEMA_VERSION + 1)))
    error = refused(path)
    assert error.code == "newer_schema"
    assert "upgrade" in str(error)


def test_a_card_that_does_not_fit_is_one_clear_error() -> None:
    good = asdict(color_card())
    for bad in (
        "not json",
        "[]",
        "{}",
        json.dumps(good | {"surprise": 1}),
        json.dumps(good | {"classes": 7}),
        json.dumps(good | {"schema_version": "one"}),
        json.dumps({**good, "input": {"mean": [0, 0, 0], "colour": 1}}),
    ):
        with pytest.raises(WsssError) as caught:
            ModelCard.from_json(bad)
        assert caught.value.code == "bad_card"


def test_a_foreign_model_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes(bytes.fromhex("0808") + b"\x12\x05other")
    assert refused(path).code == "no_card"


def test_a_model_that_is_not_there_or_is_a_folder(tmp_path: Path) -> None:
    assert refused(tmp_path / "absent.onnx").code == "model_unreadable"
    assert refused(tmp_path).code == "model_unreadable"
