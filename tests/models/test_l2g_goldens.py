"""L2G against numbers that the official code gave."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.compare import relative_error
from tests.models.seeded import seeded_conv_state, seeded_images
from wsss_rt.localize import decide, merge_passes, prepare_passes
from wsss_rt.model_card import InputSpec
from wsss_rt.training.models import create_model, load_official, official_shapes
from wsss_rt.training.models import l2g_transfer as ops
from wsss_rt.training.models.correlation import CorrelationNet
from wsss_rt.training.models.l2g import L2G
from wsss_rt.training.models.resnet38d import ResNet38d

Arrays = Mapping[str, np.ndarray[Any, Any]]
SEEDS = {"64x80": 41, "96x96": 42, "448x448": 71, "333x500": 72}


def load(folder: Path, name: str) -> Arrays:
    return np.load(folder / "l2g" / f"{name}.npz", allow_pickle=False)


def global_net(scale: float | None) -> CorrelationNet:
    """The official net without the time that starting its weights at random takes."""
    with torch.device("meta"):
        net = CorrelationNet(ResNet38d(), 20)
    shapes = {name.removeprefix("trunk."): tuple(value.shape) for name, value in net.state_dict().items()}
    state = seeded_conv_state(shapes, scale)
    net.load_state_dict({name: state[name.removeprefix("trunk.")] for name in net.state_dict()}, assign=True)
    return net.eval()


@cache
def official_model() -> L2G:
    model = create_model("l2g", num_classes=20)
    load_official(model, seeded_conv_state(official_shapes(model), None))
    assert isinstance(model, L2G)
    return model.eval()


def case(golden: Arrays, *, coco: bool = False) -> dict[str, Any]:
    """The seeded tensors of a loss file: featmaps, labels, saliency, boxes."""
    seed, images, views, side, view, classes = (int(value) for value in golden["cfg"][:6])
    random = np.random.default_rng(seed)
    feat = 2 * random.standard_normal((images, classes + 1, side // 8, side // 8), dtype=np.float32)
    local = 2 * random.standard_normal((images * views, classes + 1, view // 8, view // 8), dtype=np.float32)
    labels = np.zeros((images, classes), np.float32)
    for row in labels:
        row[random.choice(classes, 2, replace=False)] = 1
    saliency = random.random((images * views, 1, view, view), dtype=np.float32)
    saliency[saliency < 0.4] = 0
    saliency[-1] = 0
    boxes = [
        ops.local_boxes((side, side), view, views, corners=not coco, random=np.random.RandomState(100 + i))
        for i in range(images)
    ]
    numbers = np.repeat(np.arange(images), views)[:, None]
    return {
        "feat": torch.from_numpy(feat).requires_grad_(),
        "local": torch.from_numpy(local),
        "labels": torch.from_numpy(labels.repeat(views, axis=0)),
        "saliency": torch.from_numpy(saliency),
        "boxes": torch.from_numpy(np.concatenate((numbers, np.concatenate(boxes)), axis=1)),
        "threshold": float(golden["cfg"][6]),
        "weight": float(golden["cfg"][7]),
    }


VOC_SMALL = {"cfg": np.array([34, 2, 6, 224, 160, 20, 0.001, 10.0])}


@torch.no_grad()
def test_pixel_correlation_is_the_official_one(goldens_dir: Path) -> None:
    golden = load(goldens_dir, "l2g_r38_lecun_64x80")
    with torch.device("meta"):
        net = CorrelationNet(ResNet38d(), 20)
    weight = seeded_conv_state({"f9.weight": (192, 195, 1, 1)}, None)["f9.weight"]
    joined, cam = torch.from_numpy(golden["pcm_in"]), torch.from_numpy(golden["cam"])
    related = torch.nn.functional.conv2d(joined, weight)
    assert relative_error(related.numpy(), golden["pcm_f"]) < 1e-5
    spread = net._spread(cam, related)
    assert relative_error(spread.numpy(), golden["cam_att"]) < 1e-5
    result = net._result(cam, spread)
    assert relative_error(result.featmap.numpy(), golden["featmap"]) < 1e-5
    assert relative_error(result.logits.numpy(), golden["logits"]) < 1e-5


@pytest.mark.large
@torch.no_grad()
def test_every_intermediate_of_the_official_net_is_reached(goldens_dir: Path) -> None:
    golden = load(goldens_dir, "l2g_r38_lecun_64x80")
    net, images = global_net(None), seeded_images(41, 64, 80)
    found = net.intermediates(images)
    assert set(found) == set(golden.files)  # type: ignore[attr-defined]
    errors = {key: relative_error(found[key].numpy(), golden[key]) for key in found}
    assert {key: error for key, error in errors.items() if error > 1e-5} == {}
    # what is exported must be the same numbers as what the traced run shows
    out = net(images)
    assert relative_error(out.featmap.numpy(), golden["featmap"]) < 1e-5
    assert relative_error(out.logits.numpy(), golden["logits"]) < 1e-5


@pytest.mark.large
@pytest.mark.parametrize("name", ["002_96x96", "lecun_64x80"])
@torch.no_grad()
def test_the_method_gives_the_official_numbers(shared_dir: Path, name: str) -> None:
    weights, size = name.split("_")
    height, width = (int(side) for side in size.split("x"))
    golden = load(shared_dir / "goldens", f"l2g_r38_{name}")
    model = official_model()
    load_official(model, seeded_conv_state(official_shapes(model), {"002": 0.02, "lecun": None}[weights]))
    out = model.localize(seeded_images(SEEDS[size], height, width), extras=True)
    load_official(model, seeded_conv_state(official_shapes(model), None))
    errors = {key: relative_error(out.extras[key].numpy(), golden[key]) for key in golden}
    assert {key: error for key, error in errors.items() if error > 1e-5} == {}
    assert relative_error(out.maps.numpy(), golden["featmap"][:, :-1]) < 1e-5


def test_keys_and_shapes_are_the_official_ones(goldens_dir: Path) -> None:
    lines = (goldens_dir / "l2g" / "state_keys_r38.txt").read_text().splitlines()
    official = {line.split(" ", 1)[0]: line[line.index("(") : line.rindex(")") + 1] for line in lines}
    with torch.device("meta"):
        model = L2G(ResNet38d(), num_classes=20, img_size=448)
    assert {key: str(shape) for key, shape in official_shapes(model).items()} == official


def test_local_views_lie_where_the_official_code_puts_them(goldens_dir: Path) -> None:
    golden = load(goldens_dir, "l2g_boxes")
    for seed in range(3):
        for script, views in (("voc", 6), ("coco", 4)):
            random = np.random.RandomState(seed)
            boxes = ops.local_boxes((448, 448), 320, views, corners=script == "voc", random=random)
            assert np.array_equal(boxes, golden[f"{script}_seed{seed}"][:, 1:])


@pytest.mark.parametrize("script", ["voc", "coco"])
def test_targets_losses_and_gradients_are_the_official_ones(shared_dir: Path, script: str) -> None:
    golden = load(shared_dir / "goldens", f"l2g_loss_{script}_small")
    given = case(golden, coco=script == "coco")
    assert np.array_equal(given["boxes"].numpy(), golden["boxes"].astype(np.int64))
    views = len(given["boxes"]) // len(golden["label"])
    assert np.array_equal(given["labels"].numpy(), golden["label"].repeat(views, axis=0))
    grid = given["local"].shape[-2:]
    attention = ops.winner_takes_all(ops.local_attention(given["local"], given["labels"]))
    shapes = ops.shape_target(
        attention,
        given["saliency"],
        threshold=given["threshold"],
        background="binary" if script == "voc" else "soft",
    )
    for name, target, weight in (("plain", attention, 10.0), (f"sal_{script}", shapes, given["weight"])):
        assert np.array_equal(target.numpy(), golden[f"{name}_target"])
        aligned = ops.align(given["feat"], given["boxes"], grid)
        assert np.abs(aligned.detach().numpy() - golden["feat_aligned"]).max() < 1e-6
        loss = weight * ops.transfer_loss(aligned, target)
        assert abs(float(loss) - float(golden[f"{name}_loss_kd"])) < 1e-7
        if f"{name}_dfeat" in golden:
            (gradient,) = torch.autograd.grad(loss, given["feat"])
            assert np.abs(gradient.numpy() - golden[f"{name}_dfeat"]).max() < 1e-9


def test_the_papers_piecewise_target_falls_back_where_nothing_is_salient(goldens_dir: Path) -> None:
    golden = load(goldens_dir, "l2g_paper_variant_NOT_OFFICIAL")
    given = case(VOC_SMALL)
    target = ops.piecewise_target(
        ops.local_attention(given["local"], given["labels"]), given["saliency"], threshold=0.1
    )
    assert np.array_equal(target.numpy(), golden["paper_variant_target"])
    aligned = ops.align(given["feat"].detach(), given["boxes"], given["local"].shape[-2:])
    squares = (aligned[:, :-1] - target).square().sum(dim=(1, 2, 3)).numpy()
    assert np.abs(squares - golden["paper_variant_sumsq_per_patch"]).max() < 1e-4
    assert abs(float(ops.transfer_loss(aligned, target)) - float(golden["paper_variant_mse"])) < 1e-7
    # the last view has no saliency: its target is attention, which is not only 0 and 1
    assert 0 < target[-1][(target[-1] > 0)].min() < target[-1].max()


@pytest.mark.large
def test_a_training_step_has_the_official_losses_and_gradients(
    goldens_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = load(goldens_dir, "l2g_train_step_lecun")
    model = create_model("l2g", num_classes=20, img_size=128, view_size=96)
    assert isinstance(model, L2G)
    state = {}
    for net, prefix in (("global_net", ""), ("local_net", "local.")):
        shapes = official_shapes(model)
        drawn = seeded_conv_state(shapes, None, prefix=prefix)
        names = model.get_submodule(net).state_dict()
        state |= {f"{net}.{name}": drawn[name.removeprefix("trunk.")] for name in names}
    model.load_state_dict(state)
    # the official gradients are within 1e-5 of these; those of float32 convolutions need not be
    model.eval().double()
    boxes = torch.from_numpy(golden["boxes"])
    monkeypatch.setattr(model, "_draw_boxes", lambda _: boxes)
    saliency = np.random.default_rng(52).random((1, 128, 128), dtype=np.float32)
    saliency[saliency < 0.5] = 0
    saliency /= saliency.max() + 1e-10
    labels = torch.zeros(1, 20, dtype=torch.float64)
    labels[0, [4, 11]] = 1
    planes = torch.from_numpy(saliency)[None].double()
    losses = model.losses(seeded_images(51, 128, 128).double(), labels, planes)
    assert abs(float(losses["transfer"]) - float(golden["loss_kd"])) < 1e-6
    assert abs(float(losses["local"]) - float(golden["loss_cls_local"])) < 1e-6
    sum(losses.values()).backward()  # type: ignore[union-attr]
    for key in golden:
        if key.startswith("gradnorm_"):
            net, name = key.removeprefix("gradnorm_").split("_", 1)
            inner = name if name.startswith(("fc8", "f8", "f9")) else f"trunk.{name}"
            gradient = model.get_parameter(f"{net}_net.{inner}").grad
            assert gradient is not None
            assert float(gradient.norm()) == pytest.approx(float(golden[key]), rel=1e-4)
    rows = model.local_net.fc8.weight.grad
    assert rows is not None and float(rows[20].abs().max()) == 0 == golden["grad_local_fc8_rownorms"][20]


@pytest.mark.large
@torch.no_grad()
def test_labelling_at_four_scales_gives_the_official_maps_and_mask(shared_dir: Path) -> None:
    golden = load(shared_dir / "goldens", "l2g_infer_ms_lecun")
    model, labels, size = official_model(), (3, 14), golden["image"].shape[:2]
    assert model.official_settings.scales == (1.0, 0.5, 1.5, 2.0) and model.official_settings.flip
    passes = prepare_passes(
        golden["image"], InputSpec(patch=8), scales=model.official_settings.scales, flip=True
    )
    assert np.abs(passes[1].images[0] - golden["scaled_0"]).max() < 1e-6
    assert np.abs(passes[2].images[1] - golden["scaled_5"]).max() < 1e-6
    outputs = [model.localize(torch.from_numpy(entry.images)) for entry in passes]
    maps = merge_passes([out.maps.numpy() for out in outputs], labels, size=size, rule=model.map_rule)
    assert np.abs(maps - golden["norm_cam"][list(labels)]).max() < 5e-6
    for plane, label in zip(maps, labels, strict=True):
        assert np.array_equal(np.rint(plane * 255).astype(np.uint8), golden[f"png_{label}"])
    mask = decide(maps, labels, background=model.official_settings.background).mask
    assert np.array_equal(mask, golden["pred"])
