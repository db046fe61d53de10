"""The parts of ``benchmarks/kernels/labelling.py`` that need no GPU: the peer's maps, and the turns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.kernels.labelling import Photo, labeller, maps_on_card, measure, sides
from benchmarks.pipeline.peer import GRID, LAYERS, PATCH, Peer, class_maps
from tests.label_models import blocks, write_color_model
from tests.tensor_engine import TensorColorEngine
from wsss_rt.labeler import Labeler
from wsss_rt.options import LabelOptions

WIDTH, CLASSES = 12, 3


def small_peer() -> Peer:
    """The peer's graph with heads of two channels."""
    shapes = {
        "cls_token": (1, CLASSES, WIDTH),
        "pos_embed": (1, CLASSES + GRID * GRID, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "head.weight": (CLASSES, WIDTH, 3, 3),
        "head.bias": (CLASSES,),
    }
    for index in range(LAYERS):
        for name, rows, columns in (
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 24, WIDTH),
            ("mlp.fc2", WIDTH, 24),
        ):
            shapes[f"blocks.{index}.{name}.weight"] = (rows, columns)
            shapes[f"blocks.{index}.{name}.bias"] = (rows,)
        for name in ("norm1", "norm2"):
            shapes[f"blocks.{index}.{name}.weight"] = shapes[f"blocks.{index}.{name}.bias"] = (WIDTH,)
    generator = torch.Generator().manual_seed(0)
    return Peer({name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()})


def test_the_peer_on_a_card_computes_what_it_computes_on_the_host() -> None:
    peer, image = small_peer(), np.random.default_rng(0).integers(0, 256, (50, 71, 3), dtype=np.uint8)
    wanted = class_maps(peer, image, [0, 2])
    assert wanted.max() > 0.99 and wanted.std() > 0.05
    np.testing.assert_allclose(maps_on_card(peer, image, [0, 2]), wanted, atol=1e-5)


def test_turns_give_rates_ratios_and_equal_pixels(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    photos: list[Photo] = []
    rows = ["image,tags"]
    for index in range(3):
        path = folder / f"{index}.png"
        Image.fromarray(blocks(index)).save(path)
        photos.append((path, [0, 1]))
        rows.append(f"{path.name},red;green")
    tags = tmp_path / "tags.csv"
    tags.write_text("\n".join(rows))
    engine = TensorColorEngine()
    # what runs here: no kernels, and no CRF, which compiles for a minute
    ways = {
        name: replace(way, kernels="reference", options=replace(way.options, refine="none"))
        for name, way in sides(LabelOptions(refine="crf")).items()
    }
    assert {way.options.localization for way in ways.values()} == {"torch", "numpy"}
    reference = Labeler(engine=engine, localization="numpy", tags=str(tags))

    def slow(photo: Photo, out: Path) -> None:
        reference.label(photo[0]).save(out)

    (found,) = measure(
        photos, ways, labeller(engine, write_color_model(tmp_path / "m.onnx"), tags),
        {"peer, crf": slow, "peer": slow}, tmp_path / "work", peer_count=2, until=0.0,
    )  # fmt: skip
    assert set(found) == {*ways, "peer", "peer, crf"}
    for name in ways:
        row = found[name]
        assert row["against"] == ("peer, crf" if "crf" in name else "peer")
        assert row["ratio"] == pytest.approx(
            row["images_per_second"] / found[row["against"]]["images_per_second"]
        )
        assert row["pixels_equal_least"] >= 0.9999
        assert row["localization"] == ("torch" if "device" in name else "numpy")
        assert row["bottleneck"]["stage"] in row["stages_ms"]
