"""Segmenters through the exporter: one file, several sizes, square and not, the scores of PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from wsss_rt.export.onnx import export_onnx  # noqa: E402 - needs onnx
from wsss_rt.labeler import Labeler  # noqa: E402
from wsss_rt.model_card import InputSpec, Recommended, read_card  # noqa: E402
from wsss_rt.scenes import render_scene  # noqa: E402
from wsss_rt.training.checkpoints import RunConfig  # noqa: E402
from wsss_rt.training.models import create_model  # noqa: E402

CLASSES = ("ant", "bee", "cat")
SHAPES = ((1, 64, 64), (2, 72, 109), (1, 37, 90))
# the exact way and the official one, which goes through a square
OPTIONS = {"segvit": {"masks_at": "image"}, "segvit-shrunk": {"masks_at": "img_size"}}


@pytest.mark.slow
@pytest.mark.parametrize("method", OPTIONS)
def test_the_exported_graph_segments_as_pytorch_does(method: str, tmp_path: Path) -> None:
    arguments = {
        "backbone": "vit_test_tiny", "img_size": 64, "background": True, "decoder_layers": 2,
        **OPTIONS[method],
    }  # fmt: skip
    torch.manual_seed(3)
    model = create_model(method, num_classes=len(CLASSES), **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    spec = InputSpec(patch=8, size_policy="short_side", size=64, window=64, stride=48)
    config = RunConfig(
        method, CLASSES, arguments, spec, recommended=Recommended(flip=False, provenance="made for tests")
    )
    path = tmp_path / "model.onnx"
    report = export_onnx(model, config, path)
    assert report.parity is not None and report.parity.passed
    card = read_card(path)
    assert (card.kind, card.has_background, card.input.window) == ("segmenter", True, 64)

    graph = onnx.load(str(path)).graph
    operators = [node.op_type for node in graph.node]
    assert "Einsum" not in operators
    shape = [dim.dim_param or dim.dim_value for dim in graph.output[1].type.tensor_type.shape.dim]
    assert shape == ["batch", 4, "height", "width"]
    # what the first layers make of learned queries is stored, and not computed for every image
    stored = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    with torch.no_grad(), model.constants_folded():
        asking = model.get_submodule("decode_head.q").folded.asking.numpy()
    assert any(
        values.size == asking.size and np.allclose(values.reshape(asking.shape), asking, atol=1e-6)
        for values in stored
    )

    with Labeler(path, backend="onnxruntime") as labeler:
        for batch, height, width in SHAPES:
            images = torch.randn(batch, 3, height, width)
            with torch.no_grad():
                expected = model(images)
            # one image at a time, and whole: the engine behind the windows
            found = labeler.engine._engine.infer(images.numpy())
            for ours, theirs in zip((found.scores, found.maps), expected, strict=True):
                assert ours.shape == theirs.shape
                assert np.abs(ours - theirs.numpy()).max() <= 1e-4
        scene = render_scene(8, 1)
        result = labeler.label(scene.image)
    assert result.error is None and result.mask is not None
    assert result.mask.shape == scene.mask.shape
