"""What training and export ask of every method."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.seeded import seeded_images, seeded_state
from wsss_rt.training.models import Localizer, create_model, load_official, official_shapes
from wsss_rt.training.models.fusion import token_affinity

#: Options of each method with which a small model on images of several tags makes sense.
METHODS: dict[str, dict[str, Any]] = {
    "mctformer-v1": {},
    "mctformer-v2": {},
    "mctformer-plus": {},
    "ts-cam": {},
    "token-refinement": {"loss": "soft_margin"},
    "acr": {"affinity": True},
}
LOSSES = {
    "mctformer-v1": {"class"},
    "mctformer-v2": {"class", "patch"},
    "mctformer-plus": {"class", "patch", "contrast"},
    "ts-cam": {"patch"},
    "token-refinement": {"tpsm", "cam"},
    "acr": {"class", "class_view", "activation", "affinity"},
}
#: Official parameters that nothing reads.
UNUSED = {
    "mctformer-v1": {"norm.weight", "norm.bias", "head.weight", "head.bias"},
    "mctformer-v2": {"norm.weight", "norm.bias"},
    "mctformer-plus": {"norm.weight", "norm.bias"},
    "acr": {"norm.weight", "norm.bias"},
}


def build(name: str, *, backbone: str = "vit_test_tiny", **options: Any) -> Localizer:
    model = create_model(name, num_classes=5, backbone=backbone, **{**METHODS[name], **options})
    load_official(model, seeded_state(official_shapes(model), 0.2))
    return model.eval()


def close(ours: torch.Tensor, expected: torch.Tensor) -> bool:
    return ours.shape == expected.shape and bool((ours - expected).abs().max() <= 1e-5 * expected.abs().max())


@pytest.mark.parametrize("name", METHODS)
def test_losses_are_finite_and_every_trained_parameter_gets_a_gradient(name: str) -> None:
    model = create_model(name, num_classes=5, backbone="vit_test_tiny", **METHODS[name]).train()
    targets = torch.tensor([[1.0, 0, 0, 1, 0], [0, 1, 0, 0, 0]])
    losses = model.losses(torch.randn(2, 3, 64, 64), targets)
    assert set(losses) == LOSSES[name]
    assert all(loss.shape == () and torch.isfinite(loss) for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    untrained = {key for key, value in model.named_parameters() if value.grad is None}
    assert untrained == UNUSED.get(name, set())


def test_losses_stay_float32_under_autocast() -> None:
    model = build("mctformer-v2")
    images, targets = seeded_images(0, 64, 64), torch.ones(1, 5)
    exact = model.losses(images, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.losses(images, targets)
    for key, loss in mixed.items():
        assert loss.dtype == torch.float32
        assert abs(loss - exact[key]) < 0.05 * exact[key]


@pytest.mark.parametrize("name", ["mctformer-v1", "mctformer-v2"])
@torch.no_grad()
def test_training_and_localizing_see_the_same_logits(name: str) -> None:
    """The fused attention of training and the explicit one of localizing are one function."""
    model = build(name)
    images, targets = seeded_images(0, 61, 90), torch.tensor([[1.0, 0, 0, 0, 1]])
    extras = model.localize(images, extras=True).extras
    for key, loss in model.losses(images, targets).items():
        logits = extras["logits_cls" if key == "class" else "logits_patch"]
        expected = torch.nn.functional.multilabel_soft_margin_loss(logits, targets)
        assert abs(loss - expected) < 1e-5 * expected


@pytest.mark.parametrize(
    ("backbone", "height", "width", "grid"),
    [
        ("vit_test_tiny", 125, 170, (15, 21)),
        ("vit_test_tiny", 8, 200, (1, 25)),
        ("vit_scene_hybrid8_160", 127, 71, (15, 8)),
    ],
)
@torch.no_grad()
def test_any_image_size_gives_its_floored_grid(
    backbone: str, height: int, width: int, grid: tuple[int, int]
) -> None:
    model = build("mctformer-v2", backbone=backbone)
    images = seeded_images(0, height, width)
    out = model.localize(images)
    assert out.maps.shape == (1, 5, *grid)
    assert out.maps.dtype == out.scores.dtype == torch.float32


@torch.no_grad()
def test_a_patch_projection_does_not_see_the_remainder_at_the_right_and_the_bottom() -> None:
    model = build("mctformer-v2")
    images = seeded_images(0, 125, 170)
    disturbed = images.clone()
    disturbed[..., 120:, :] = 9
    disturbed[..., 168:] = 9
    assert torch.equal(model.localize(disturbed).maps, model.localize(images).maps)


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    model = build(name, backbone="vit_test_tiny")
    images = torch.cat([seeded_images(seed, 72, 88) for seed in range(3)])
    together = model.localize(images)
    for index in range(3):
        alone = model.localize(images[index : index + 1])
        assert close(alone.maps[0], together.maps[index])
        assert close(alone.scores[0], together.scores[index])


@torch.no_grad()
def test_fusing_more_layers_than_there_are_fuses_all() -> None:
    images = seeded_images(0, 64, 64)
    assert torch.equal(
        build("mctformer-v2", layers_fused=12).localize(images).maps,
        build("mctformer-v2", layers_fused=3).localize(images).maps,
    )


@torch.no_grad()
def test_extras_of_a_batch_keep_the_batch_dimension() -> None:
    model = build("mctformer-v2")
    extras = model.localize(torch.cat([seeded_images(seed, 64, 80) for seed in (0, 1)]), extras=True).extras
    assert extras["c2p_layers_headmean"].shape == (2, 3, 5, 8, 10)
    assert {value.shape[0] for value in extras.values()} == {2}


@torch.no_grad()
def test_one_pass_gives_every_map_that_single_passes_give() -> None:
    model = build("mctformer-v2", layers_fused=2)
    images = torch.cat([seeded_images(seed, 64, 80) for seed in (0, 1)])
    variants = [
        {"attention_type": kind, "affinity": refined, "affinity_source": source}
        for kind in model.attention_types
        for refined, source in ((False, "attention"), (True, "attention"), (True, "tokens"))
    ]
    found = model.localize_each(images, variants)
    assert model.attention_type == "fused" and model.affinity_source == "attention"
    for options, one in zip(variants, found, strict=True):
        alone = build("mctformer-v2", layers_fused=2, **options).localize(images)
        assert close(one.maps, alone.maps) and close(one.scores, alone.scores)
    assert len({one.maps.sum().item() for one in found}) == len(variants)


@torch.no_grad()
def test_affinity_of_tokens_is_highest_between_alike_ones_and_keeps_constants() -> None:
    tokens = torch.tensor([[[5.0, 1.0], [5.0, 1.1], [5.0, -1.0]]])
    affinity = token_affinity(tokens)
    assert torch.allclose(affinity.sum(-1), torch.ones(1, 3))
    assert affinity[0, 0, 1] > 100 * affinity[0, 0, 2]
    assert torch.isfinite(token_affinity(torch.zeros(2, 4, 3))).all()


@pytest.mark.slow
@torch.no_grad()
def test_one_exported_graph_serves_every_batch_and_size() -> None:
    # the other methods and options go through ONNX: tests/export/test_every_method.py
    model = build("mctformer-v2", backbone="vit_scene_hybrid8_160", layers_fused=3, affinity_source="tokens")
    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic, 2: dynamic, 3: dynamic},)
    traced = torch.export.export(model, (torch.zeros(2, 3, 88, 120),), dynamic_shapes=shapes).module()
    side = model.img_size
    for batch, height, width in [(1, side, side), (1, side, side + 1), (3, 61, 200), (2, 88, 120)]:
        images = seeded_images(0, height, width).expand(batch, -1, -1, -1)
        out = model.localize(images)
        scores, maps = traced(images)
        assert close(scores, out.scores)
        assert close(maps, out.maps)
