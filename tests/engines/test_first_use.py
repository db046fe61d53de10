"""The parity gate before an engine's first use: once per model and machine, remembered, and it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wsss_rt.engines import open_engine
from wsss_rt.engines.openvino import OpenVinoEngine
from wsss_rt.errors import WsssError
from wsss_rt.gate_images import GateImages, gate_images, images_to_label
from wsss_rt.scenes import render_scene

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


def two_scenes() -> GateImages:
    return GateImages(
        tuple(render_scene(5, index, height=64, width=80).image for index in range(2)), "2 scenes"
    )


@pytest.fixture(autouse=True)
def needs_bfloat16() -> None:
    from wsss_rt.engines.openvino import shared_core

    if "BF16" not in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no bfloat16")


class Calls:
    """Counts how often images were asked for, and keeps what was told."""

    def __init__(self) -> None:
        self.images, self.lines = 0, list[str]()

    def take(self) -> GateImages:
        self.images += 1
        return two_scenes()

    def open(self, model: Path, **options: Any) -> Any:
        return open_engine(model, images=self.take, tell=self.lines.append, **options)


def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    run = OpenVinoEngine.run

    def wrong(self: OpenVinoEngine, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        scores, maps = run(self, images)
        return scores, maps[..., ::-1].copy()

    monkeypatch.setattr(OpenVinoEngine, "run", wrong)


def test_a_lower_precision_is_compared_once_and_the_result_stands_in_the_choice(color_model: Path) -> None:
    calls = Calls()
    engine = calls.open(color_model, precision="bfloat16")
    assert engine.precision == engine.choice["precision"] == "bfloat16"
    assert engine.choice["parity"]["passed"] and engine.choice["parity"]["images"] == 2
    assert engine.choice["parity"]["against"] == "float32 ONNX Runtime"
    (line,) = calls.lines
    assert "first use of openvino bfloat16" in line and "2 scenes" in line
    again = calls.open(color_model, precision="bfloat16")
    assert again.choice["parity"] == engine.choice["parity"]
    assert calls.images == 1 and len(calls.lines) == 1


def test_what_export_checked_starts_without_a_comparison(color_model: Path) -> None:
    calls = Calls()
    for backend in ("onnxruntime", "openvino"):
        assert "parity" not in calls.open(color_model, backend=backend).choice
    assert calls.images == 0 and calls.lines == []


def test_an_engine_that_differs_is_refused_now_and_later(
    color_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls()
    with monkeypatch.context() as spoiled:
        spoil(spoiled)
        for _ in range(2):
            with pytest.raises(WsssError) as caught:
                calls.open(color_model, precision="bfloat16")
            assert caught.value.code == "parity_failed" and "maps differ by" in str(caught.value)
            assert "drop --precision" in str(caught.value)
    # remembered: nothing is compared a second time
    assert calls.images == 1
    with pytest.raises(WsssError):
        calls.open(color_model, precision="bfloat16")
    assert calls.open(color_model, precision="bfloat16", cache=False).choice["parity"]["passed"]


def test_another_model_is_compared_anew(color_model: Path, tmp_path: Path) -> None:
    from tests.label_models import write_color_model

    calls = Calls()
    calls.open(color_model, precision="bfloat16")
    calls.open(write_color_model(tmp_path / "other.onnx", places=(2, 1, 0)), precision="bfloat16")
    assert calls.images == 2


def test_a_caller_who_compares_can_leave_the_gate_out(color_model: Path) -> None:
    calls = Calls()
    assert calls.open(color_model, precision="bfloat16", gate=False).choice["parity"] == "skipped"
    assert calls.images == 0


def test_the_gate_sees_the_users_own_images(tmp_path: Path) -> None:
    import cv2

    paths = []
    for index in range(12):
        path = tmp_path / f"{index:02}.png"
        if index % 3:
            cv2.imwrite(str(path), np.full((20 + index, 30, 3), 50, np.uint8))
        else:
            path.write_bytes(b"no image")
        paths.append(path)
    found = images_to_label(paths)
    assert len(found.images) == 8 and found.source == "4 of the images and 4 generated scenes"
    assert all(image.shape[1] == 30 for image in found.images[:4])
    assert images_to_label([tmp_path / "gone.png"]).source == gate_images(None).source == "8 generated scenes"
