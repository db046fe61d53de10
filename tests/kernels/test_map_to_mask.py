"""Token maps to a mask: the kernels against plain PyTorch, and both against what numpy does on the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsss_rt import localize
from wsss_rt.kernels import last_path, use_kernels
from wsss_rt.kernels.map_to_mask import map_planes, map_to_mask, merge_grids, planes_to_mask
from wsss_rt.kernels.map_to_mask.cases import maps_of, parity
from wsss_rt.model_card import MapRule, Normalise, Upsample

ONE, TWO = ((5, 4),), ((5, 4), (7, 3))


@pytest.mark.parametrize(
    ("grids", "size", "present", "upsample", "normalise", "classes"),
    [
        (ONE, (41, 33), (0, 7, 19), "bilinear", "minmax", 20),
        (TWO, (19, 47), (3,), "aligned", "minmax", 4),
        (TWO, (37, 21), (1, 2), "bicubic", "peak", 5),
        # more tiles than one in both directions
        (ONE, (40, 70), (0, 1), "bilinear", "peak", 2),
        (((1, 1),), (9, 5), (2,), "aligned", "minmax", 3),
        (((1, 3),), (1, 1), (0,), "bicubic", "minmax", 1),
        # a model of 16-bit masks, and maps larger than the image
        (((9, 12),), (6, 5), (0, 255, 299), "bilinear", "minmax", 300),
    ],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_planes_mask_and_sums_are_as_good_as_those_of_pytorch(
    grids: tuple[tuple[int, int], ...],
    size: tuple[int, int],
    present: tuple[int, ...],
    upsample: str,
    normalise: str,
    classes: int,
    device: str,
) -> None:
    verdicts = parity(
        grids, size, present, upsample=upsample, normalise=normalise, classes=classes, device=device
    )
    print(*(verdict.as_dict() for verdict in verdicts), sep="\n")
    assert [verdict.output for verdict in verdicts] == ["planes", "mask", "sums"]
    assert [verdict for verdict in verdicts if not verdict.passed] == []


@pytest.mark.parametrize("mode", ["reference", "triton"])
@pytest.mark.parametrize(
    ("upsample", "normalise"), [("bilinear", "minmax"), ("aligned", "peak"), ("bicubic", "minmax")]
)
def test_masks_and_their_numbers_are_those_of_numpy(
    mode: str, upsample: Upsample, normalise: Normalise, device: str
) -> None:
    size, present, band = (31, 45), (0, 2, 5), (0.35, 0.6)
    maps = maps_of(((6, 8), (4, 6)), 7, seed=3)
    planes = localize.merge_passes(
        [part.numpy() for part in maps], present, size=size, rule=MapRule(upsample, normalise)
    )
    wanted = localize.decide(planes, present, num_classes=7, background=0.5, ignore_band=band)
    tokens, grids = merge_grids([part.to(device) for part in maps], present)
    rule = {"upsample": upsample, "normalise": normalise}
    with use_kernels(mode):
        mask, sums = map_to_mask(tokens, grids, present, size, background=0.5, ignore_band=band, **rule)
        found = map_planes(tokens, grids, size, **rule)
    np.testing.assert_allclose(found.cpu().numpy(), planes, atol=2e-6)
    assert mask.dtype == torch.uint8
    # of 1,395 pixels none is that near to a tie
    assert np.array_equal(mask.cpu().numpy(), wanted.mask)
    numbers = sums.cpu().numpy()
    assert numbers[0] / mask.numel() == pytest.approx(wanted.confidence, abs=1e-6)
    won = [
        int((localize.decide(planes, present, background=0.5).mask == index + 1).sum()) for index in present
    ]
    assert numbers[4:].tolist() == won and min(won) > 0
    assert (numbers[1:4] / numbers[4:]).tolist() == pytest.approx(wanted.class_scores, abs=1e-6)


@pytest.mark.parametrize("mode", ["reference", "triton"])
def test_the_decision_takes_planes_of_background_and_of_what_is_sure(mode: str, device: str) -> None:
    generator = torch.Generator().manual_seed(1)
    planes, background = torch.rand(3, 30, 41, generator=generator), torch.rand(30, 41, generator=generator)
    sure, classes = planes[0] < 0.1, (4, 256, 299)
    wanted = localize.decide(
        planes.numpy(), classes, num_classes=300, background=background.numpy(), ignore_band=(0.6, 0.7),
        sure_background=sure.numpy(),
    )  # fmt: skip
    with use_kernels(mode):
        mask, sums = planes_to_mask(
            planes.to(device), classes, background=background.to(device), ignore_band=(0.6, 0.7),
            sure_background=sure.to(device), wide=True,
        )  # fmt: skip
    assert mask.dtype == torch.uint16
    assert np.array_equal(mask.cpu().numpy(), wanted.mask)
    assert {0, 5, 257, 300, 65_535} == set(np.unique(wanted.mask).tolist())
    assert float(sums[0]) / mask.numel() == pytest.approx(wanted.confidence, abs=1e-6)


@pytest.mark.parametrize("mode", ["reference", "triton"])
def test_ties_go_to_background_and_then_to_the_first_class(mode: str, device: str) -> None:
    planes = torch.tensor([[[0.5, 0.7, 0.2]], [[0.5, 0.7, 0.6]]], device=device)
    with use_kernels(mode):
        mask, sums = planes_to_mask(planes, (1, 8), background=0.5)
    assert mask.tolist() == [[0, 2, 9]]
    # margins 0, 0 and 0.1; class 1 won a pixel at 0.7, class 8 one at 0.6
    assert sums.tolist() == pytest.approx([0.1, 0.7, 0.6, 1, 1], abs=1e-6)


@pytest.mark.parametrize("mode", ["reference", "triton"])
def test_without_a_class_all_is_background_unless_the_band_holds_0(mode: str, device: str) -> None:
    tokens, grids = merge_grids(maps_of(ONE, 3, device=device), ())
    with use_kernels(mode):
        plain, sums = map_to_mask(tokens, grids, (), (4, 5), background=0.4)
        ignored, _ = map_to_mask(tokens, grids, (), (4, 5), background=0.4, ignore_band=(0.0, 0.2))
    assert not plain.any() and plain.shape == (4, 5) and len(sums) == 1
    assert (ignored == 255).all()


def test_a_constant_map_stays_dark_and_mirror_images_are_turned_back(device: str) -> None:
    flat = torch.full((1, 1, 3, 3), 7.0, device=device)
    tokens, grids = merge_grids([flat], (0,))
    for mode in ("reference", "triton"):
        with use_kernels(mode):
            assert not map_to_mask(tokens, grids, (0,), (12, 12), background=0.0)[0].any()
    left = torch.zeros(1, 1, 2, 4, device=device)
    left[..., 0] = 1
    merged, _ = merge_grids([torch.cat((left, left.flip(-1)))], (0,))
    assert merged.tolist() == [[2, 0, 0, 0, 2, 0, 0, 0]]


def test_the_launches_are_recorded_and_what_does_not_fit_is_refused(device: str) -> None:
    tokens, grids = merge_grids(maps_of(ONE, 3, device=device), (0, 2))
    with use_kernels("triton"):
        map_to_mask(tokens, grids, (0, 2), (8, 9), background=0.5)
        planes = map_planes(tokens, grids, (8, 9))
        planes_to_mask(planes, (0, 2), background=0.5)
    paths = [last_path(name) for name in ("map_to_mask", "map_planes", "planes_to_mask")]
    assert paths == ["triton[range,decide]", "triton[range,planes]", "triton[decide]"]
    map_to_mask(tokens, grids, (0, 2), (8, 9), background=0.5)
    assert last_path("map_to_mask") == "reference"
    for wrong in (
        lambda: map_to_mask(tokens, grids, (0,), (8, 9), background=0.5),
        lambda: map_to_mask(tokens, ((9, 9),), (0, 2), (8, 9), background=0.5),
        lambda: map_to_mask(tokens, grids, (0, 2), (8, 9), background=0.5, upsample="nearest"),
        lambda: map_planes(tokens, grids, (8, 9), normalise="softmax"),
        lambda: planes_to_mask(planes, (0, 2), background=torch.zeros(9, 8)),
    ):
        with pytest.raises(ValueError):
            wrong()


def test_operators_have_fakes_of_the_right_shapes() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from wsss_rt.kernels.map_to_mask import taps_for, triton

    tokens, grids = merge_grids(maps_of(ONE, 3), (0, 2))
    taps = taps_for(grids, (8, 9), "bilinear", tokens.device)
    names = torch.tensor([0, 2], dtype=torch.int32)
    with FakeTensorMode(allow_non_fake_inputs=True):
        mask, sums = triton.map_to_mask(tokens, *taps, names, [8, 9], 0.4, [], 1e-8, False, True)
        planes = triton.map_planes(tokens, *taps, [8, 9], 1e-8, False)
        narrow, _ = triton.planes_to_mask(planes, names, None, None, 0.4, [], False)
    assert (mask.shape, mask.dtype, sums.shape) == ((8, 9), torch.uint16, (5,))
    assert planes.shape == (2, 8, 9) and narrow.dtype == torch.uint8
