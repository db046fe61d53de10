"""An affinity net from a run to a file that `label --refine walk` takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.seeded import seeded_conv_state, seeded_images
from wsss_rt.cli.export_report import as_text
from wsss_rt.engines import open_engine
from wsss_rt.export.onnx import export_onnx
from wsss_rt.model_card import InputSpec, read_card
from wsss_rt.parity_affinity import compare_affinity
from wsss_rt.refine.walk import WalkRefiner
from wsss_rt.scenes import render_scene
from wsss_rt.training.checkpoints import load_official_checkpoint, load_run, save_run
from wsss_rt.training.models import create_model, official_shapes


@pytest.mark.slow
def test_an_official_checkpoint_becomes_an_affinity_model(tmp_path: Path) -> None:
    built = create_model("psa", num_classes=20, backbone="resnet38d_test_tiny")
    torch.save(seeded_conv_state(official_shapes(built), None), tmp_path / "psa.pth")
    model, config = load_official_checkpoint(
        tmp_path / "psa.pth", "psa", classes=(), model={"backbone": "resnet38d_test_tiny"}
    )
    # a run is exported the same way
    save_run(tmp_path / "run", model, config)
    model, config = load_run(tmp_path / "run")
    path = tmp_path / "affinity.onnx"
    report = export_onnx(model, config, path)
    assert report.parity is not None and report.parity.passed
    assert {row.output for row in report.parity.rows} == {"affinity"} and len(report.parity.rows) == 2
    assert "--refine walk --affinity" in as_text(report)
    card = read_card(path)
    assert (card.kind, card.classes, card.outputs) == ("affinity", (), ("affinity",))

    for backend in ("onnxruntime", "openvino"):
        engine = open_engine(path, backend=backend)
        for batch, height, width in ((1, 64, 80), (2, 37, 90), (1, 9, 8)):
            images = torch.cat([seeded_images(seed, height, width) for seed in range(batch)])
            with torch.no_grad():
                expected = model(images).numpy()
            (found,) = engine.run(images.numpy())
            assert found.shape == expected.shape == (batch, 34, -(-height // 8), -(-width // 8))
            assert np.abs(found - expected).max() < 1e-4
    scene = render_scene(8, 1)
    scores = np.stack([scene.mask == 0, scene.mask > 0]).astype(np.float32)
    refined = WalkRefiner(path)(scene.image, scores).scores
    assert refined.shape == scores.shape and refined.min() >= 0 and refined.max() <= 1


def test_a_wrong_engine_fails_the_gate() -> None:
    class Wrong:
        def __init__(self, error: float, planes: int = 34) -> None:
            self.error, self.planes = error, planes

        def run(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
            return (right(images)[:, : self.planes] + np.float32(self.error),)

    def right(images: np.ndarray) -> np.ndarray:
        return np.full((1, 34, 4, 5), 0.5, np.float32)

    class Card:
        input = InputSpec(patch=8)

    images = [np.zeros((32, 40, 3), np.uint8)]
    verdicts = {}
    for name, engine in {
        "right": Wrong(0),
        "off": Wrong(1e-3),
        "nan": Wrong(np.nan),
        "few": Wrong(0, 33),
    }.items():
        report = compare_affinity(right, {name: engine}, images, card=Card(), limit=1e-4, source="zeros")  # type: ignore[arg-type]
        verdicts[name] = report.passed
    assert verdicts == {"right": True, "off": False, "nan": False, "few": False}
