"""`wsss-rt bench` on a tiny model: everything is measured once, and what it writes can be compared."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from tests.cli.label_runs import Cli
from tests.label_models import ColorEngine, blocks, color_card, tied, write_color_model
from tests.packages import write_package
from wsss_rt.benchmark import run, subjects
from wsss_rt.engines.base import EngineOutput
from wsss_rt.engines.openvino import OpenVinoEngine
from wsss_rt.model_package import BuiltFor

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

FLOAT = ("onnxruntime float32", "openvino float32")


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_color_model(tmp_path / "color.onnx")
    (tmp_path / "photos").mkdir()
    for index in range(3):
        Image.fromarray(blocks(index)).save(tmp_path / "photos" / f"{index}.png")
    # what the machine can do at most is measured in test_flops
    monkeypatch.setattr(run, "product_rate", lambda engine, seconds: 1e11)
    return Cli(tmp_path, monkeypatch, capsys)


OPTIONS = ("color.onnx", "--images", "photos", "--seconds", "0.01", "--precision", "float32")


def test_a_bench_measures_model_and_pipeline_and_can_be_held_against_itself(
    cli: Cli, tmp_path: Path, tables: ModuleType
) -> None:
    ended = cli("bench", *OPTIONS, "--batch", "1,2", "--size", "64x96", "--json", "now.json")
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "now.json").read_text())
    assert [engine["name"] for engine in found["engines"]] == list(FLOAT) and found["skipped"] == {}
    for engine in found["engines"]:
        assert set(engine["seconds"]) == {"read", "import", "build"}
        assert engine["agreement"]["passed"] and engine["agreement"]["masks"]["mean"] == 0
        assert engine["agreement"]["images"] == 3
    assert [row["key"] for row in found["rows"]] == [
        *(f"model, {name}, batch {batch}, 64x96 px" for batch in (1, 2) for name in FLOAT),
        *(f"pipeline, {name}, batch {batch}" for batch in (1, 2) for name in FLOAT),
    ]
    for row in found["rows"]:
        assert row["images_per_second"] > 0 and row["agrees"] and row["speed_up"] > 0
        if "milliseconds" in row:
            times = row["milliseconds"]
            assert times["count"] >= 5 and times["p50"] <= times["p90"] <= times["p95"] <= times["p99"]
            assert row["flops"] == 2 * 8 * 12 * 9 and row["first_ms"] > 0
            assert row["flops_per_second"] == pytest.approx(row["flops"] * row["images_per_second"], rel=1e-4)
            assert row["share_of_products"] == pytest.approx(row["flops_per_second"] / 1e11, rel=1e-4)
        else:
            stages = row["stages_ms"]
            assert {"read", "decode", "prepare", "infer", "localize", "write", "total"} <= set(stages)
            assert stages["write"]["count"] == 3 * row["runs"] >= 6 and row["failed"] == 0
            assert row["bottleneck"]["stage"] in stages and max(row["bottleneck"]["busy"].values()) > 0
    assert found["copy_bytes_per_second"] > 1e8 and found["versions"]["onnxruntime"]
    assert f"{row['key']} waited most for" in " ".join(ended.out.split())
    assert found["elapsed_seconds"] > 0 and "In short: " in ended.out
    # what the README shows of it
    assert all(f"| {name} |" in tables.bench(found) for name in FLOAT)
    assert "masks equal %" in ended.out and "images/s" in ended.out and "100.000" in ended.out
    # the same report holds against itself; a faster past fails the command, after the tables
    row = found["rows"][0]
    row["images_per_second"] *= 1e6
    (tmp_path / "old.json").write_text(json.dumps(found))
    options = (*OPTIONS, "--scope", "model", "--size", "64x96", "--backend", "onnxruntime")
    ended = cli("bench", *options, "--compare", "old.json", "--fail-if", "0.5")
    assert ended.code == 1 and "against old.json" in ended.out
    (line,) = ended.error_lines
    assert "worse than in old.json" in line and row["key"] in line and "not measured any more" in line


def test_an_engine_with_wrong_masks_gets_no_speed_up(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    infer = OpenVinoEngine.infer

    def mirrored(self: OpenVinoEngine, images: Any) -> EngineOutput:
        found = infer(self, images)
        return EngineOutput(found.scores, found.maps[..., ::-1].copy())

    monkeypatch.setattr(OpenVinoEngine, "infer", mirrored)
    ended = cli("bench", *OPTIONS, "--scope", "model", "--size", "64x96", "--json", "-")
    found = json.loads(ended.out)
    assert ended.code == 0
    assert [row["speed_up"] for row in found["rows"]] == [1.0, None]
    assert [engine["agreement"]["passed"] for engine in found["engines"]] == [True, False]


def test_mixed_is_measured_in_the_labeller_with_its_second_looks(
    cli: Cli, tmp_path: Path, tables: ModuleType
) -> None:
    from wsss_rt.engines.openvino import shared_core

    if "BF16" not in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16")
    # half of it lies at the background's score
    Image.fromarray(tied()).save(tmp_path / "photos" / "tied.png")
    options = ["mixed" if word == "float32" else word for word in OPTIONS]
    ended = cli("bench", *options, "--backend", "openvino", "--size", "64x96", "--json", "now.json")
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "now.json").read_text())
    (engine,), (row,) = found["engines"], found["rows"]
    assert engine["name"] == "openvino mixed" and engine["agreement"]["passed"]
    assert row["key"] == "pipeline, openvino mixed, batch 1" and row["failed"] == 0
    assert (row["second_looks"], row["second_looks_failed"]) == (row["runs"], 0)
    assert "| openvino mixed |" in tables.bench(found)
    assert "1 of 4" in ended.out and "--precision mixed" in ended.out and "the model alone" not in ended.out


def test_what_does_not_run_here_is_said(cli: Cli) -> None:
    options = [word for word in OPTIONS if word not in ("--precision", "float32")]
    options += ["--backend", "onnxruntime", "--precision", "float32,bfloat16"]
    ended = cli("bench", *options, "--scope", "model", "--size", "32x32")
    assert ended.code == 0
    assert "onnxruntime bfloat16 does not run here: bfloat16 does not run in onnxruntime" in ended.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--backend", "onnxrt"), "onnxruntime"),
        (("--precision", "bf16"), "bfloat16"),
        (("--precision", "mixed", "--scope", "model"), "use --scope pipeline"),
        (("--scope", "modell"), "model"),
        (("--size", "500"), "500x375"),
        (("--batch", "0"), "--batch 1,4"),
        (("--fail-if", "0.1"), "--compare OLD.json"),
        (("--compare", "none.json"), "cannot read none.json"),
        (("--seconds", "0"), "--seconds"),
        (("--classes", "3"), "--count"),
        (("--count", "segvit"), "--count color.onnx"),
        (("--images", "nowhere"), "nowhere"),
    ],
)
def test_a_wrong_option_ends_before_anything_is_measured(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr(run, "open_subjects", None)
    ended = cli("bench", "color.onnx", *options)
    assert ended.code == 2 and words in ended.err and "Traceback" not in ended.err


BUILT = BuiltFor(device="cpu", torch="2.14.1", platform="linux x86_64", name="a processor")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("code.pt2", "--backend", "openvino"), "openvino runs ONNX, and this model is a package"),
        (("code.pt2", "--precision", "bfloat16"), "compiled to compute in float32, not bfloat16"),
        (("code.pt2", "--package", "code.pt2"), "--package goes with an ONNX model"),
        (("color.onnx", "--backend", "aotinductor"), "--package FILE.pt2"),
        (("color.onnx", "--package", "color.onnx"), "names a package"),
        (("color.onnx", "--package", "other.pt2"), "other.pt2 is another model than color.onnx"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_packages_are_refused_where_they_do_not_belong(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(run, "open_subjects", None)
    write_package(tmp_path / "code.pt2", BUILT)
    write_package(tmp_path / "other.pt2", BUILT, card=color_card(method="another"))
    ended = cli("bench", *words)
    assert ended.code == 2 and len(ended.error_lines) == 1 and said in ended.err


@pytest.mark.parametrize("recorded", ["skipped", {"engines": {"a": {"maps": {}}}}, None])
def test_a_package_that_nobody_compared_is_not_taken_for_right(recorded: Any) -> None:
    engine = ColorEngine(card=color_card(quality={"parity": recorded}))
    subject = subjects.Subject("aotinductor float32", engine, "code.pt2")
    subjects.judge_package(subject)
    assert subject.parity is None and not subject.agrees


def test_the_reference_comes_first_and_names_are_checked() -> None:
    pairs = subjects.wanted(("openvino", "onnxruntime"), ())
    assert pairs[0] == ("onnxruntime", "float32")
    assert pairs[1:] == [("openvino", "float32"), ("openvino", "bfloat16"), ("openvino", "mixed")]
    # what it takes depends on images, of which the model alone has none
    assert subjects.wanted(("openvino", "onnxruntime"), (), scope="model") == pairs[:-1]
    assert subjects.wanted(("openvino",), ("float32",)) == [("openvino", "float32")]
