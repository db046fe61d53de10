"""Models with the kernels forced: the same scores and maps, and the paths that were meant to run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.seeded import seeded_images, seeded_state
from wsss_rt.kernels import last_path, use_kernels
from wsss_rt.kernels._dispatch import watched
from wsss_rt.training.models import Localizer, create_model, fusion, load_official, official_shapes

IMAGES = torch.cat([seeded_images(0, 48, 64), seeded_images(1, 48, 64)])


def tiny(method: str, **options: Any) -> Localizer:
    model = create_model(method, num_classes=5, backbone="vit_test_tiny", **options)
    load_official(model, seeded_state(official_shapes(model), 0.1))
    return model.eval()


@pytest.mark.parametrize(
    ("method", "options", "path"),
    [
        ("mctformer-v2", {}, "triton[attend,class_rows,affinity_block]"),
        ("ts-cam", {}, "triton[attend,class_rows]"),
        ("token-refinement", {"threshold": 0.5}, "triton[attend,class_rows]"),
        ("acr", {"affinity": True, "start_layer": 2}, "triton[attend,affinity_block]"),
    ],
)
@torch.no_grad()
def test_maps_do_not_depend_on_what_runs(
    method: str, options: dict[str, Any], path: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion, "form_for", lambda *args, **settings: "accumulated")
    model, images = tiny(method, **options).to(device), IMAGES.to(device)
    with use_kernels("reference"):
        plain = model.localize(images)
    with use_kernels("triton"), watched() as ran:
        found = model.localize(images)
    assert {operator for operator, _ in ran} <= {*model.operators}
    assert last_path("attention_aggregate") == path
    if method == "token-refinement":
        assert last_path("masked_reattention") == "triton[reattend]"
        assert last_path("select_tokens") == "triton[select]"
        assert last_path("spread_mass") == "triton[spread]"
    torch.testing.assert_close(found.scores, plain.scores, rtol=1e-5, atol=1e-5)
    largest = float(plain.maps.abs().max())
    torch.testing.assert_close(found.maps, plain.maps, rtol=0, atol=1e-5 * largest)


@torch.no_grad()
def test_streaming_holds_no_affinity_and_gives_the_same(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "form_for", lambda *args, **settings: "streaming")
    model, images = tiny("mctformer-v1").to(device), IMAGES.to(device)
    with use_kernels("triton"), watched() as ran:
        found = model.localize(images)
    assert {operator for operator, _ in ran} == {*model.operators}
    assert last_path("affinity_propagate") == "triton[propagate]"
    assert last_path("attention_aggregate") in ("triton[attend]", "triton[attend,class_rows]")
    monkeypatch.undo()
    plain = model.localize(images)
    assert last_path("attention_aggregate") == "reference"
    torch.testing.assert_close(found.maps, plain.maps, rtol=0, atol=1e-5 * float(plain.maps.abs().max()))


@torch.no_grad()
def test_an_exported_program_keeps_the_kernels(device: str) -> None:
    """Operators stay whole in torch.export's graph, under their names, with shapes known."""
    model = tiny("token-refinement").to(device)
    with use_kernels("triton"):
        program = torch.export.export(model, (IMAGES.to(device),))
    names = {str(node.target) for node in program.graph.nodes}
    for operator in ("attention_aggregate", "select_tokens", "masked_reattention", "spread_mass"):
        assert f"wsss_rt.{operator}.default" in names
    with use_kernels("reference"):
        scores, maps = model(IMAGES.to(device))
    ours = program.module()(IMAGES.to(device))
    torch.testing.assert_close(ours, (scores, maps), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["triton", "reference"])
@pytest.mark.parametrize("threshold", [0.5, 1e-6], ids=["some", "none-selected"])
@torch.no_grad()
def test_selected_tokens_alone_give_the_same_maps(mode: str, threshold: float, device: str) -> None:
    images, maps = IMAGES.to(device), []
    for compact in (False, True):
        model = tiny("token-refinement", threshold=threshold, compact=compact).to(device)
        asked: list[int] = []
        model.score_layer.mlp.register_forward_hook(
            lambda module, inputs, output, asked=asked: asked.append(output.shape[1])
        )
        with use_kernels(mode):
            maps.append(model.localize(images))
            model.localize(images, extras=True)
        patches = maps[-1].maps[0, 0].numel()
        # with extras every token is asked for
        assert asked[1] == patches and (asked[0] < patches) == compact
    torch.testing.assert_close(maps[0].maps, maps[1].maps, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(maps[0].scores, maps[1].scores, rtol=1e-5, atol=1e-6)
