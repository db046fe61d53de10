"""Packages of compiled code: what they say of themselves is read without torch, and only from whole files."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.label_models import color_card
from tests.packages import FOLDER, bare_package, write_package
from tests.processes import run_python
from wsss_rt.engines import open_engine
from wsss_rt.engines.private_folder import refuse_unsafe_code
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.model_card import read_artifact, read_card
from wsss_rt.model_package import BuiltFor, read_package, seal_package

BUILT = BuiltFor(
    device="cuda",
    torch="2.14.1+cu130",
    platform="linux x86_64",
    name="NVIDIA H200",
    isa=("AVX512", "AMX_TILE"),
    compute_capability="9.0",
    precision="bfloat16",
    kernels=True,
    weights="ab" * 32,
)


def test_card_and_machine_come_back_and_sources_stay_out(tmp_path: Path) -> None:
    path = write_package(tmp_path / "m.pt2", BUILT)
    card, built_for = read_package(path.read_bytes(), "m.pt2")
    assert built_for == BUILT
    assert replace(card, weights_sha256="") == color_card() and len(card.weights_sha256) == 64
    assert read_card(path) == card and read_artifact(path)[1] == path.read_bytes()
    assert b"/home/someone" not in path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert f"model/{FOLDER}/a.wrapper.so" in archive.namelist()


def test_a_new_card_keeps_the_hash_of_the_code(tmp_path: Path) -> None:
    first = seal_package(bare_package(), color_card(), BUILT)
    again = seal_package(first, color_card(quality={"parity": {"passed": True}}), BUILT)
    card, _ = read_package(again, "m.pt2")
    assert card.quality["parity"]["passed"]
    assert card.weights_sha256 == read_package(first, "m.pt2")[0].weights_sha256
    other = seal_package(bare_package({f"{FOLDER}/weights.bin": b"1"}), color_card(), BUILT)
    assert card.weights_sha256 != read_package(other, "m.pt2")[0].weights_sha256


def test_any_changed_or_missing_byte_is_found(tmp_path: Path) -> None:
    data = write_package(tmp_path / "m.pt2", BUILT).read_bytes()
    for position in range(0, len(data), 7):
        changed = bytearray(data)
        changed[position] ^= 4
        with pytest.raises(WsssError) as caught:
            read_package(bytes(changed), "m.pt2")
        assert caught.value.code == "model_damaged"
    for length in (len(data) - 1, len(data) // 2, 100):
        with pytest.raises(WsssError) as caught:
            read_package(data[:length], "m.pt2")
        assert caught.value.code in ("model_damaged", "no_card")


def test_a_package_from_elsewhere_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "foreign.pt2"
    path.write_bytes(bare_package())
    with pytest.raises(WsssError) as caught:
        read_card(path)
    assert caught.value.code == "no_card" and "--to aotinductor" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["data/weights/model.pt", "models/model.json", "data/aotinductor/../../../evil.so", "extra/other.py"],
)
def test_a_package_with_anything_else_inside_is_refused(tmp_path: Path, name: str) -> None:
    path = write_package(tmp_path / "m.pt2", BUILT, members={name: b"cos\nsystem\n"})
    with pytest.raises(WsssError) as caught:
        read_card(path)
    assert caught.value.code == "unsafe_package" and name in str(caught.value)


def test_reading_one_imports_no_torch(tmp_path: Path) -> None:
    path = write_package(tmp_path / "m.pt2", BUILT)
    done = run_python(
        "import sys, pathlib; from wsss_rt.model_card import read_card; "
        f"print(read_card(pathlib.Path({str(path)!r})).method, 'torch' in sys.modules)"
    )
    assert done.stdout.split() == ["color-probe", "False"], done.stderr


def test_code_that_others_could_have_put_there_is_not_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    path = write_package(folder / "m.pt2", BUILT)
    refuse_unsafe_code(path)
    path.chmod(0o666)
    with pytest.raises(WsssError, match="everybody can write to"):
        open_engine(path)
    path.chmod(0o644)
    folder.chmod(0o777)
    with pytest.raises(WsssError) as caught:
        open_engine(path)
    assert caught.value.code == "unsafe_package" and str(folder) in str(caught.value)
    # as /tmp: others can add files there, and cannot replace this one
    folder.chmod(0o1777)
    refuse_unsafe_code(path)
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
        with pytest.raises(WsssError, match="number 12345"):
            refuse_unsafe_code(path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "onnxruntime"}, "runs ONNX"),
        ({"precision": "float32"}, "was compiled to compute in bfloat16, not float32"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_a_package_cannot_do_is_a_usage_error(
    tmp_path: Path, options: dict[str, str], words: str
) -> None:
    path = write_package(tmp_path / "m.pt2", BUILT, card=color_card(precision="bfloat16"))
    with pytest.raises(UsageError) as caught:
        open_engine(path, **options)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_the_card_is_json_that_a_person_can_read(tmp_path: Path) -> None:
    path = write_package(tmp_path / "m.pt2", BUILT)
    with zipfile.ZipFile(path) as archive:
        fields = json.loads(archive.read("model/extra/wsss_rt.json"))
    assert fields["card"]["classes"] == ["red", "green", "blue"]
    assert fields["built_for"]["name"] == "NVIDIA H200"
