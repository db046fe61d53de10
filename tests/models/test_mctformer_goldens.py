"""MCTformer V1 and V2 against numbers that the official code gave."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.compare import generated_maps, relative_error
from tests.models.seeded import IMAGE_SEEDS, seeded_images, seeded_state
from wsss_rt.training.models import Localizer, create_model, load_official, official_shapes


@cache
def official_model(version: str, scale: str) -> Localizer:
    model = create_model(f"mctformer-{version}", num_classes=20, img_size=224)
    load_official(model, seeded_state(official_shapes(model), int(scale) / 100))
    return model.eval()


@pytest.mark.parametrize(
    "name", ["mct_v1_scale008_224x224", "mct_v2_scale008_224x224", "mct_v2_scale002_192x320"]
)
@torch.no_grad()
def test_every_intermediate_equals_the_official_one(goldens_dir: Path, name: str) -> None:
    _, version, scale, size = name.split("_")
    golden = np.load(goldens_dir / "mctformer" / f"{name}.npz", allow_pickle=False)
    model = official_model(version, scale.removeprefix("scale"))
    height, width = map(int, size.split("x"))
    images = seeded_images(IMAGE_SEEDS[size], height, width)
    out = model.localize(images, extras=True)

    assert set(out.extras) == set(golden.files)
    errors = {key: relative_error(out.extras[key].numpy(), golden[key]) for key in golden.files}
    assert {key: error for key, error in errors.items() if error > 1e-5} == {}
    # what is exported must be the same numbers as what the traced run shows
    assert relative_error(model.localize(images).maps[0].numpy(), golden["refined_K12"]) < 1e-5


@torch.no_grad()
def test_each_option_gives_its_own_golden_map(goldens_dir: Path) -> None:
    golden = np.load(goldens_dir / "mctformer" / "mct_v2_scale008_224x224.npz", allow_pickle=False)
    model = official_model("v2", "008")
    images = seeded_images(0, 224, 224)
    expected = {
        ("fused", 3, True): "refined_K3",
        ("fused", 3, False): "fused_K3",
        ("attention", 3, False): "mct_attn_K3",
        ("patchcam", 12, True): "refined_patchcam",
        ("patchcam", 12, False): "patchcam",
    }
    try:
        for (kind, layers, affinity), name in expected.items():
            model.attention_type, model.layers_fused, model.affinity = kind, layers, affinity
            assert relative_error(model.localize(images).maps[0].numpy(), golden[name]) < 1e-5, name
    finally:
        model.attention_type, model.layers_fused, model.affinity = "fused", 12, True


@torch.no_grad()
def test_generation_of_a_photograph_sized_image_end_to_end(goldens_dir: Path) -> None:
    """Image and mirror image, tags, min-max per class; 125 x 170 is no multiple of the patch."""
    golden = np.load(goldens_dir / "mctformer" / "e2e_v2_scale008_ss_K3_crf.npz", allow_pickle=False)
    model = official_model("v2", "008")
    model.layers_fused = 3
    try:
        ours = generated_maps(model, golden["image"], golden["keys"])
    finally:
        model.layers_fused = 12
    assert np.abs(ours - golden["cam"]).max() < 1e-4
