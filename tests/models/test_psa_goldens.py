"""PSA's affinity net against numbers that the official code gave, and what it learns from two masks."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.compare import relative_error
from tests.models.seeded import seeded_conv_state, seeded_images
from wsss_rt.errors import UsageError
from wsss_rt.refine.random_walk import walk
from wsss_rt.refine.walk_params import WalkParams, pair_offsets
from wsss_rt.training.models import create_model, load_official, official_shapes
from wsss_rt.training.models.psa import PSA, affinity_losses, cell_labels, pair_affinity
from wsss_rt.training.models.resnet38d import ResNet38d, Taps

Array = np.ndarray[Any, Any]
TINY = "resnet38d_test_tiny"


def tiny(**options: object) -> PSA:
    torch.manual_seed(0)
    model = create_model("psa", num_classes=3, backbone=TINY, **{"img_size": 64, **options})  # type: ignore[arg-type]
    assert isinstance(model, PSA)
    return model


def official(scale: float) -> PSA:
    """The official net without the time that starting its weights at random takes."""
    with torch.device("meta"):
        model = PSA(ResNet38d(), num_classes=20, img_size=448)
    state = seeded_conv_state(official_shapes(model), scale, noisy_norms=True)  # type: ignore[arg-type]
    model.load_state_dict(model.from_official(state), assign=True)
    return model.eval()


def seeded_tap(name: str, channels: int, height: int, width: int) -> torch.Tensor:
    random = np.random.default_rng(zlib.crc32(name.encode()))
    low = random.standard_normal((1, channels, (height + 2) // 3, (width + 2) // 3), dtype=np.float32)
    grown = low.repeat(3, axis=2).repeat(3, axis=3)[:, :, :height, :width]
    noise = random.standard_normal((channels, height, width), dtype=np.float32)
    return torch.from_numpy(np.maximum(grown + np.float32(0.3) * noise, 0))


def of_origins(planes: Array) -> Array:
    """Affinity of the pairs that the official code forms, (K, origins)."""
    return planes[:, :-4, 4:-4].reshape(len(planes), -1)


def test_keys_and_shapes_are_the_official_ones(shared_dir: Path) -> None:
    lines = (
        (shared_dir / "goldens" / "mctformer" / "state_keys_psa_resnet38_aff.txt").read_text().splitlines()
    )
    rows = [line.split("\t") for line in lines if "\t" in line]
    with torch.device("meta"):
        model = PSA(ResNet38d(), num_classes=20, img_size=448)
    assert {key: str(shape) for key, shape in model.official_shapes().items()} == {
        row[0]: row[1] for row in rows
    }


@torch.no_grad()
def test_the_trunks_taps_and_pairs_are_the_official_ones(goldens_dir: Path) -> None:
    golden = np.load(goldens_dir / "mctformer" / "psa_resnet38_backbone_64x80.npz", allow_pickle=False)
    model, images = official(0.02), seeded_images(3, 64, 80)
    taps = model.trunk(images)
    for name in ("conv4", "conv5", "conv6"):
        values = getattr(taps, name)[0].numpy()
        assert relative_error(values[:8], golden[f"{name}_first8"]) < 1e-5
        assert relative_error(values.mean(axis=(1, 2)), golden[f"{name}_chan_mean"]) < 1e-5
    assert np.abs(of_origins(model.affinity(images)[0].numpy()) - golden["pair_aff"]).max() < 1e-6


@torch.no_grad()
def test_the_head_and_its_pairs_are_the_official_ones(goldens_dir: Path) -> None:
    golden = np.load(goldens_dir / "mctformer" / "psa_affinity_head_9x11.npz", allow_pickle=False)
    trunk = tiny().trunk
    trunk.tap_widths = (512, 1024, 4096)
    model = PSA(trunk, num_classes=20, img_size=448)
    for name in ("f8_3", "f8_4", "f8_5", "f9"):
        key = f"{name}.weight"
        weight = model.get_parameter(key)
        weight.copy_(seeded_conv_state({key: tuple(weight.shape)}, 0.08)[key])
    widths = {"conv4": 512, "conv5": 1024, "conv6": 4096}
    taps = Taps(**{name: seeded_tap(name, width, 9, 11) for name, width in widths.items()})
    joined, features = model.head(taps)
    assert relative_error(joined[0, :8].numpy(), golden["f8cat_first8"]) < 1e-5
    assert relative_error(features[0].numpy(), golden["feature_f9"]) < 1e-5
    planes = pair_affinity(features, 5)[0].numpy()
    assert np.abs(of_origins(planes) - golden["pair_aff"]).max() < 1e-6
    # the walk forms the same pairs: a step from every cell alone is a row of PSA's matrix over its sums
    matrix = golden["aff_dense"].astype(np.float64)
    cells = np.eye(99, dtype=np.float32).reshape(99, 9, 11)
    steps = walk(cells, planes, WalkParams(beta=1.0, steps=1)).reshape(99, 99)
    assert np.abs(steps - matrix / matrix.sum(axis=0)).max() < 1e-6


def test_two_masks_say_what_is_known_of_a_cell() -> None:
    planes = torch.zeros(1, 2, 16, 32, dtype=torch.uint8)
    planes[0, 0, :8, :8] = 2  # low and high agree on a class
    planes[0, 1, :8, :8] = 2
    planes[0, 1, :8, 8:16] = 3  # only the high power sees it
    planes[0, 0, :8, 16:24] = 1  # only the low one does: background wins
    planes[0, :, 8:, :8] = 255  # outside
    planes[0, :, 8:, 8:11] = 255  # partly outside: what is inside votes
    planes[0, :, 8:, 11:16] = 3
    planes[0, :, 8:, 16:19] = 3  # a minority
    expected = torch.tensor([[[2, 255, 0, 0], [255, 3, 0, 0]]])
    assert torch.equal(cell_labels(planes), expected)


def test_each_kind_of_pair_is_averaged_by_itself() -> None:
    labels = torch.zeros(1, 6, 10, dtype=torch.long)
    labels[0, :, 5:] = 2
    labels[0, 0, 4] = 255
    affinity = torch.full((1, 34, 6, 10), 0.75)
    losses = affinity_losses(affinity, labels, 5)
    alike, apart = -np.log(0.75), -np.log(0.25)
    assert float(losses["background"]) == pytest.approx(alike / 4, abs=1e-3)
    assert float(losses["class"]) == pytest.approx(alike / 4, abs=1e-3)
    assert float(losses["different"]) == pytest.approx(apart / 2, abs=1e-3)
    # without two classes nothing differs
    assert float(affinity_losses(affinity, torch.zeros_like(labels), 5)["different"]) == 0


def test_it_learns_that_two_colours_differ() -> None:
    model = tiny()
    images = torch.zeros(2, 3, 40, 96)
    images[..., 48:] = 1.5
    images += 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
    planes = torch.zeros(2, 2, 40, 96, dtype=torch.uint8)
    planes[..., 48:] = 1
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=5e-3)
    model.train()
    first = last = 0.0
    for step in range(16):
        loss = torch.stack(list(model.losses(images, planes).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        last = float(loss.detach())
        first = first or last
        assert step or all(value.grad is not None for value in model.parameters() if value.requires_grad)
    assert last < 0.7 * first
    with torch.no_grad():
        affinity = model.eval().affinity(images[:1])[0]
    beside = affinity[pair_offsets().index((0, 1))]
    assert float(beside[1:4, 5].mean()) < float(beside[1:4, [2, 3, 8, 9]].mean()) - 0.1


@torch.no_grad()
def test_sizes_round_up_to_whole_cells_and_small_images_pass() -> None:
    model = tiny().eval()
    for height, width in ((61, 90), (9, 200), (1, 1)):
        planes = model.affinity(seeded_images(1, height, width))
        assert planes.shape == (1, 34, -(-height // 8), -(-width // 8))
        assert torch.isfinite(planes).all() and planes.min() >= 0 and planes.max() <= 1
    # zeros after normalising, as if the image had been larger and grey there
    image = seeded_images(1, 61, 90)
    padded = torch.nn.functional.pad(image, (0, 6, 0, 3))
    assert torch.equal(model.affinity(image), model.affinity(padded))


def test_an_official_state_dict_loads_and_a_wrong_radius_is_refused() -> None:
    model = tiny()
    state = seeded_conv_state(official_shapes(model), 0.05)  # type: ignore[arg-type]
    load_official(model, state)  # type: ignore[arg-type]
    assert torch.equal(model.trunk.conv1a.weight, state["conv1a.weight"])
    with pytest.raises(UsageError, match="radius"):
        tiny(radius=1)
