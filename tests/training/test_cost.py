"""Counts of multiply-accumulates against published and hand-computed ones; nothing is allocated."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from wsss_rt.cli.app import main
from wsss_rt.training.checkpoints import RunConfig, save_run
from wsss_rt.training.cost import OUTPUTS, count, measure, meta_model
from wsss_rt.training.models import METHODS, create_model
from wsss_rt.training.models.conv_method import ConvMethod


@pytest.mark.parametrize(
    ("method", "backbone", "side", "published"),
    [
        ("segvit", "vit_large_patch16_224", 640, 637.9),
        ("segvit-shrunk", "vit_large_patch16_224", 640, 373.5),
        ("segvit", "vit_base_patch16_224", 512, 120.9),
    ],
)
def test_segvit_costs_what_was_published(method: str, backbone: str, side: int, published: float) -> None:
    model = meta_model(method, num_classes=150, backbone=backbone, img_size=side)
    cost = count(model, (side, side))
    assert cost.total / 1e9 == pytest.approx(published, rel=1e-3)
    assert sum(cost.kinds.values()) == cost.total
    # a whole block: 12 N D^2 + 2 N^2 D, and two norms
    tokens, dim = (side // 16) ** 2, model.embed_dim
    assert cost.layers["blocks.0"] == 12 * tokens * dim**2 + 2 * tokens**2 * dim + 2 * 5 * tokens * dim
    # the product of classes and masks, and two resizes of it; nothing of the blocks
    assert cost.layers[OUTPUTS] == (150**2 + 2 * 4 * 150) * side**2


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_can_be_counted(method: str) -> None:
    convolutional = issubclass(METHODS[method], ConvMethod)
    backbone = "resnet38d_test_tiny" if convolutional else "vit_test_tiny"
    cost = count(meta_model(method, num_classes=3, backbone=backbone, img_size=64), (64, 72))
    assert cost.parameters > 20_000
    if convolutional:
        # its first convolution alone: 3x3 from 3 channels, a wide one, on every pixel
        assert cost.kinds["products"] > 9 * 3 * 64 * 72
    else:
        # blocks that run in full cannot cost less than their projections
        assert cost.total > cost.layers["blocks.0"] > 12 * 72 * 32**2


def test_a_pass_is_timed() -> None:
    models = [create_model("conv-head", num_classes=2, backbone="vit_test_tiny").eval() for _ in range(2)]
    assert all(seconds > 0 for seconds in measure(models, (32, 40), runs=2))


def bench(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["wsss-rt", "bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_the_command_compares_methods_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {"backbone": "vit_test_tiny", "img_size": 64, "background": True}
    model = create_model("conv-head", num_classes=3, **arguments)
    save_run(tmp_path / "run", model, RunConfig("conv-head", ("a", "b", "c"), arguments))
    code, out, _ = bench(monkeypatch, capsys, "--count", tmp_path / "run", "--json")
    (found,) = json.loads(out)
    assert code == 0 and found["method"] == "conv-head" and found["size"] == [64, 64]
    assert sum(found["layers"].values()) == found["macs"]
    options = ("--backbone", "vit_test_tiny", "--img-size", 64, "--classes", 3, "--set", "decoder_layers=1")
    code, out, _ = bench(
        monkeypatch, capsys, "--count", "segvit", "--count", "segvit-shrunk", *options, "--time", 1
    )
    assert code == 0 and "blocks.2" in out and "decode_head.decoder_1.layers.0" in out
    first, second = (
        line.split() for line in out.splitlines() if line.startswith("segvit") and "px" not in line
    )
    assert first[4] == "1.000" and float(second[4]) != 1.0 and len(first) == 7


def test_the_command_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, words in (
        ((), "--count"),
        (("--count", "segvat"), "segvit"),
        (("--count", tmp_path / "none.onnx"), "no run or model"),
        (("--count", "segvit", "--size", "500"), "500x375"),
    ):
        code, _, err = bench(monkeypatch, capsys, *arguments)
        assert code == 2 and words in err and "Traceback" not in err
