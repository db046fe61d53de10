"""The comparison with the peer: what its figures are made of, and that the peer computes the same maps."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


def load(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of benchmarks/pipeline as a module."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = root / "benchmarks" / "pipeline" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"pipeline_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_ratio_is_of_times_in_the_same_turns(root_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare = load(root_dir, "compare", monkeypatch)
    rows = [
        {
            "images": 2,
            "seconds": {"float32": 2.0, "peer": 5.0},
            "processor_seconds": {"float32": 3.0, "peer": 9.0},
            "equal": {"float32": [1.0, 0.99]},
            "second_looks": {"float32": 1, "peer": 0},
            "stages": {"float32": [{"infer": 3.0}, {"infer": 5.0, "refine": 4.0}], "peer": [{}, {}]},
        },
        {
            "images": 1,
            "seconds": {"float32": 2.0, "peer": 3.0},
            "processor_seconds": {"float32": 1.0, "peer": 5.0},
            "equal": {"float32": [0.98]},
            "second_looks": {"float32": 1, "peer": 0},
            "stages": {"float32": [{"infer": 4.0, "refine": 2.0}], "peer": [{}]},
        },
    ]
    found = compare.summary(rows, "float32")
    assert found["images"] == 3 and found["ratio"] == 2.0
    assert found["images_per_second"] == 0.75
    assert found["processor_ratio"] == 3.5 and found["processor_ms"] == pytest.approx(4000 / 3)
    assert found["ratio_median"] == 2.0 and found["ratio_least"] == 1.5
    assert found["pixels_equal_mean"] == pytest.approx(0.99) and found["pixels_equal_least"] == 0.98
    assert found["stages_ms"] == {"infer": 4.0, "refine": 2.0} and found["second_looks"] == 2
    assert "pixels_equal_mean" not in compare.summary(rows, "peer")


def test_each_side_is_first_in_turn(root_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = load(root_dir, "sides", monkeypatch)
    names = dict.fromkeys(("float32", "bfloat16", "peer"))
    orders = [sides.in_turn(names, number) for number in range(4)]
    assert [order[0] for order in orders] == ["float32", "bfloat16", "peer", "float32"]
    assert all(sorted(order) == sorted(names) for order in orders)


def test_equal_pixels_are_counted_on_masks_of_one_size(
    root_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = load(root_dir, "compare", monkeypatch)
    first = np.array([[0, 1], [2, 255]], np.uint8)
    assert compare.equal_pixels(first, first) == 1.0
    assert compare.equal_pixels(first, np.array([[0, 1], [3, 255]], np.uint8)) == 0.75
    with pytest.raises(ValueError, match="masks of"):
        compare.equal_pixels(first, first[:1])


def test_the_peer_computes_the_maps_of_the_model(root_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    from wsss_rt.localize import merge_passes, prepare_passes
    from wsss_rt.model_card import InputSpec
    from wsss_rt.training.models import create_model, load_official, official_shapes

    compare, peer = load(root_dir, "compare", monkeypatch), load(root_dir, "peer", monkeypatch)
    model = create_model("mctformer-v2", num_classes=20, img_size=224, layers_fused=3).eval()
    state = compare.seeded_state(official_shapes(model))
    load_official(model, state)
    # neither side a multiple of a token
    image = np.random.default_rng(0).integers(0, 256, (70, 101, 3), dtype=np.uint8)
    present = [2, 11]
    found = peer.class_maps(peer.Peer(state), image, present)
    (one,) = prepare_passes(image, InputSpec())
    with torch.no_grad():
        maps = model.localize(torch.from_numpy(one.images)).maps.numpy()
    expected = merge_passes([maps], present, size=(70, 101))
    assert np.ptp(expected[0]) > 0.9
    np.testing.assert_allclose(found, expected, atol=2e-4)
    rough = peer.class_maps(peer.Peer(state, bfloat16=True), image, present)
    assert 1e-4 < np.abs(rough - expected).max() < 0.2


def test_the_work_of_the_model_is_what_a_plain_graph_multiplies(
    root_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    from torch.utils.flop_counter import FlopCounterMode

    from wsss_rt.training.models import create_model, official_shapes

    compare, peer = load(root_dir, "compare", monkeypatch), load(root_dir, "peer", monkeypatch)
    stage = load(root_dir, "model_stage", monkeypatch)
    state = compare.seeded_state(official_shapes(create_model("mctformer-v2", num_classes=20, img_size=224)))
    with FlopCounterMode(display=False) as counted:
        peer.Peer(state)(torch.zeros(1, 3, 64, 96))
    assert counted.get_total_flops() == stage.deit_small_flops(4 * 6 + 20)
