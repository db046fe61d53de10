"""Every method through the exporter: one file, several sizes, the maps of PyTorch, and masks from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer

from tests.models.seeded import seeded_conv_state, seeded_images, seeded_state
from wsss_rt.export.graph import build_graph
from wsss_rt.export.onnx import make_card
from wsss_rt.labeler import Labeler
from wsss_rt.model_card import InputSpec, seal
from wsss_rt.scenes import render_scene
from wsss_rt.training.checkpoints import RunConfig
from wsss_rt.training.models import Localizer, create_model, load_official, official_shapes

CLASSES = ("ant", "bee", "cat")
# tracing takes as long as a graph is deep: two blocks are the least that a sum over some layers needs
METHODS: dict[str, dict[str, Any]] = {
    "mctformer-v1": {"layers_fused": 1},
    "mctformer-plus": {"consistency": "acr"},
    "ts-cam": {},
    "token-refinement": {"loss": "soft_margin"},
    # the gradient is part of the graph: in the last two blocks, and through a whole one before them
    "acr": {"backbone": "vit_test_tiny", "start_layer": 0, "affinity": True},
    "l2g": {"backbone": "resnet38d_test_tiny"},
}


@register_model
def vit_test_two_blocks(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT of 64 px, 8 px patches, 32 wide, 2 blocks."""
    shape = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    shape["drop_path_rate"] = kwargs.get("drop_path_rate", 0.0)
    return VisionTransformer(num_classes=0, **shape)


def arguments(method: str) -> dict[str, Any]:
    return {"backbone": "vit_test_two_blocks", "img_size": 64, **METHODS[method]}


def build(method: str) -> Localizer:
    model: Localizer = create_model(method, num_classes=len(CLASSES), **arguments(method))
    shapes = official_shapes(model)
    load_official(model, seeded_conv_state(shapes, None) if method == "l2g" else seeded_state(shapes, 0.2))
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_exported_maps_are_those_of_pytorch(method: str, tmp_path: Path) -> None:
    model = build(method)
    config = RunConfig(
        method=method,
        classes=CLASSES,
        model=arguments(method),
        input=InputSpec(patch=8, size_policy="short_side", size=64),
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(seal(build_graph(model, patch=8), make_card(model, config)))
    with Labeler(path, backend="onnxruntime") as labeler:
        for batch, height, width in ((1, 64, 64), (2, 72, 109), (3, 37, 90)):
            images = torch.cat([seeded_images(seed, height, width) for seed in range(batch)])
            with torch.no_grad():
                expected = model.localize(images)
            found = labeler.engine.infer(images.numpy())
            for ours, theirs in ((found.scores, expected.scores), (found.maps, expected.maps)):
                assert ours.shape == theirs.shape
                assert np.abs(ours - theirs.numpy()).max() <= 1e-4 * theirs.abs().max()
        scene = render_scene(8, 1)
        result = labeler.label(scene.image, tags=["bee"])
    assert result.error is None and result.mask is not None
    assert result.mask.shape == scene.mask.shape
    found_values = set(np.unique(result.mask))
    # what L2G's random weights call negative everywhere is no object, and is not stretched to be one
    assert found_values <= {0, 2} if method == "l2g" else found_values == {0, 2}
