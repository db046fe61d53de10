"""The closed form against automatic differentiation, its graph, and the hybrid's trunk below it."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from tests.models.seeded import seeded_images, seeded_state
from wsss_rt.errors import UsageError
from wsss_rt.training.models import Localizer, create_model, load_official, official_shapes
from wsss_rt.training.models.gradient_maps import (
    GRADIENTS,
    autograd_gradients,
    class_map,
    closed_form_gradients,
    record_block,
)
from wsss_rt.training.models.hybrid import HybridPatches
from wsss_rt.training.models.position import resize_positions

DIM, CLASSES = 32, 3


def close(ours: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return ours.shape == expected.shape and bool(
        (ours - expected).abs().max() <= tolerance * expected.abs().max()
    )


def random_blocks(layer_scale: float | None) -> tuple[nn.ModuleList, nn.Linear, Tensor]:
    torch.manual_seed(0)
    options = {"num_heads": 4, "qkv_bias": True, "init_values": layer_scale}
    blocks = nn.ModuleList(Block(DIM, **options) for _ in range(5)).double().eval()
    head = nn.Linear(DIM, CLASSES).double()
    with torch.no_grad():
        for value in (*blocks.parameters(), *head.parameters()):
            value.add_(0.3 * torch.randn_like(value))
    return blocks, head, torch.randn(2, 7, DIM, dtype=torch.float64)


@pytest.mark.parametrize("start", range(5))
@pytest.mark.parametrize("layer_scale", [None, 0.5])
def test_closed_form_equals_autograd(start: int, layer_scale: float | None) -> None:
    blocks, head, tokens = random_blocks(layer_scale)
    blocks = blocks[start:]
    expected, attentions = autograd_gradients(blocks, tokens, head)
    with torch.no_grad():
        records = []
        for block in blocks:
            records.append(record_block(block, tokens if not records else records[-1].output))
        ours = closed_form_gradients(records, head.weight)
    assert len(ours) == len(expected) == 5 - start
    for gradient, other, record, attention in zip(ours, expected, records, attentions, strict=True):
        assert close(record.attention, attention, 1e-13)
        assert close(gradient, other[..., 0, :], 1e-12)
        for function in GRADIENTS:
            assert class_map(gradient, record.attention[:, :, 0], function).shape == (2, CLASSES, 6)


def test_the_four_functions() -> None:
    gradient = torch.tensor([[-1.0, 2.0], [3.0, -5.0]])[None, :, None, :]  # two heads
    attention = torch.tensor([[0.5, 0.5], [0.9, 0.1]])[None]
    # of token 1: G+ is 2 and 0, (GA)+ is 1 and 0
    expected = {"grad": 1.0, "grad_s": 1.0, "cam_grad": 0.5, "cam_grad_s": 0.5}
    assert {name: class_map(gradient, attention, name).item() for name in GRADIENTS} == expected
    doubled = {name: class_map(2 * gradient, attention, name).item() for name in GRADIENTS}
    assert doubled == {"grad": 2.0, "grad_s": 4.0, "cam_grad": 1.0, "cam_grad_s": 2.0}


def build(backbone: str, **options: object) -> Localizer:
    model = create_model("acr", num_classes=5, backbone=backbone, **options)  # type: ignore[arg-type]
    load_official(model, seeded_state(official_shapes(model), 0.1))
    return model.eval()


@pytest.mark.slow
@torch.no_grad()
def test_one_exported_graph_of_a_hybrid_serves_every_batch_and_size() -> None:
    model = build("vit_tiny_r_s16_p8_224", start_layer=10, gradient="cam_grad", affinity=True)
    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic, 2: dynamic, 3: dynamic},)
    traced = torch.export.export(model, (torch.zeros(2, 3, 96, 128),), dynamic_shapes=shapes).module()
    for batch, height, width in [(1, 64, 64), (3, 67, 130), (2, 96, 128)]:
        images = seeded_images(0, height, width).expand(batch, -1, -1, -1)
        out = model.localize(images)
        patch = model.patch_size
        assert out.maps.shape == (batch, 5, height // patch, width // patch)
        scores, maps = traced(images)
        assert close(scores, out.scores, 1e-4)
        assert close(maps, out.maps, 1e-4)


@torch.no_grad()
def test_maps_are_what_autograd_says() -> None:
    model = build("vit_test_tiny", start_layer=0, affinity=True)
    images = torch.cat([seeded_images(seed, 40, 64) for seed in (0, 1)])
    for function in GRADIENTS:
        model.gradient = function
        out = model.localize(images, extras=True)
        for index in range(5):
            expected = out.extras[f"getam_{function}_s0_c{index}_aff"]
            assert close(out.maps[:, index].flatten(1), expected, 1e-4)


@torch.no_grad()
def test_a_hybrid_trunk_equals_the_one_of_timm_but_for_the_epsilon() -> None:
    name = "vit_tiny_r_s16_p8_224"
    embed = timm.create_model(name, num_classes=0).patch_embed
    images = seeded_images(0, 64, 96)
    features = embed.backbone(images)
    expected = embed.proj(features)
    keys = set(embed.state_dict())
    ours = HybridPatches(embed).eval()
    assert set(ours.state_dict()) == keys
    assert ours.patch_size == (32, 32)
    assert close(ours.backbone(images), features, 1e-2)
    assert close(ours(images), expected.flatten(2).transpose(1, 2), 1e-2)
    # sizes that are no multiple round down
    assert ours.backbone(torch.zeros(1, 3, 127, 95)).shape[-2:] == (31, 23)


@pytest.mark.parametrize("grid", [(4, 4), (4, 7), (20, 3)])
def test_bilinear_positions_are_those_of_interpolate(grid: tuple[int, int]) -> None:
    stored = torch.randn(1, 64, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    image = stored.reshape(1, 8, 8, 6).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(image, size=grid, mode="bilinear").flatten(2).transpose(1, 2)
    ours = resize_positions(stored, grid, image_size=(1, 2), offset=0.0, bilinear=True)
    assert ours.dtype == torch.float64
    # sampling points are computed in single precision
    assert close(ours, expected, 1e-5)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({"gradient": "gard"}, "grad"),
        ({"start_layer": -1}, "counted from 0"),
        ({"backbone": "vit_tiny_r_s16_p8_224", "img_size": 16}, "32 px patch"),
        ({"backbone": "vit_small_resnet26d_224"}, "normalise over the batch"),
    ],
)
def test_wrong_arguments_say_what_is_meant(arguments: dict[str, object], hint: str) -> None:
    call: dict[str, object] = {"num_classes": 5, "backbone": "vit_test_tiny", **arguments}
    with pytest.raises(UsageError, match=hint):
        create_model("acr", **call)  # type: ignore[arg-type]
