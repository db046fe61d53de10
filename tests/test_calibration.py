"""Confidence against truth: what `eval --calibrate` suggests, and that `label` takes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.cli.eval_command import Command, command
from tests.samples import make_result
from wsss_rt.calibration import Calibrator
from wsss_rt.formats import open_writers
from wsss_rt.formats.png import encode_mask
from wsss_rt.label_config import label_options, merge_settings

__all__ = ["command"]


def scene(seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A map of class value 2 and its truth: right from 0.7 on, background below 0.3, a coin between."""
    rng = np.random.default_rng(seed)
    plane = rng.random((1, 40, 50)).astype(np.float32)
    truth = np.where(plane[0] >= 0.7, 2, np.where(plane[0] < 0.3, 0, 2 * rng.integers(0, 2, plane.shape[1:])))
    return plane, truth.astype(np.uint8)


def test_the_band_is_where_neither_side_reaches_the_target() -> None:
    calibrator = Calibrator()
    for seed in range(20):
        plane, truth = scene(seed)
        truth[:3] = 255
        calibrator.add(plane, [2], truth)
    found = calibrator.result(target=0.9, refined=False)
    low, high = found.band() or (0, 0)
    # from t < 0.7 on: (0.3 + (0.7 - t) / 2) / (1 - t) = 0.9 gives 0.625; background is its mirror image
    assert (low, high) == pytest.approx((0.375, 0.625), abs=0.01)
    assert found.kept() == pytest.approx(0.75, abs=0.02)
    assert found.settings() == {"background": low, "ignore-band": [low, high]}
    assert found.class_precision[700] == 1 and found.background_precision[300] == 1
    assert found.class_coverage[0] == 1 and np.isnan(found.background_precision[0])
    assert calibrator.result(target=0.6, refined=False).settings().keys() == {"background"}
    refined = calibrator.result(target=0.6, refined=True)
    assert refined.band() == (0.5, 0.5) and refined.settings() == {}


def test_what_cannot_be_reached_gives_no_band() -> None:
    calibrator = Calibrator()
    calibrator.add(np.full((1, 4, 4), 0.6, np.float32), [1], np.full((4, 4), 2, np.uint8))
    calibrator.add(np.empty((0, 4, 4), np.float32), [], np.zeros((4, 4), np.uint8))
    found = calibrator.result(target=0.9, refined=False)
    assert found.band() is None and found.settings() == {} and np.isnan(found.kept())
    assert found.as_dict()["coverage"] is None and found.images == 2


def test_eval_writes_settings_that_label_takes(command: Command, tmp_path: Path) -> None:
    out, gt, target = tmp_path / "out", tmp_path / "gt", tmp_path / "thresholds.toml"
    (gt / "x").mkdir(parents=True)
    writers = None
    for seed in range(3):
        result = make_result(f"x/{seed}.jpg", seed)
        plane, truth = scene(seed)
        name = result.classes.names[1]
        result.tags, result.maps, result.mask = (name,), plane, truth
        writers = writers or open_writers(["npz"], out, result.classes, context={})
        for writer in writers:
            writer.add(result)
        (out / f"masks/x/{seed}.png").parent.mkdir(parents=True, exist_ok=True)
        for path in (out / f"masks/x/{seed}.png", gt / f"x/{seed}.png"):
            path.write_bytes(encode_mask(truth))
    words = (out, gt, "--classes", "scenes", "--calibrate", target)
    code, text, error = command(*words)
    assert code == 0, error
    assert f"wrote {target}" in text and "ignore-band" in text
    options = label_options(merge_settings({}, target))
    assert options.ignore_band == pytest.approx((0.375, 0.625), abs=0.05)
    assert options.background == options.ignore_band[0]
    said = target.read_text()
    assert str(gt) in said and "precision 0.9 on 3 images" in said
    assert command.json(*words, "--target", "0.8")["calibration"]["target"] == 0.8
    code, _, error = command(*words, "--target", "1.5")
    assert code == 2 and "--target 1.5" in error
    code, _, error = command(out, gt, "--target", "0.8")
    assert code == 2 and "--calibrate" in error
