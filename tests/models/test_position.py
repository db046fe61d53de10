"""The position resize against torch's own interpolation, whose scale-factor form the official code used."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from wsss_rt.training.models.position import resize_positions

SIDE = 14
GRIDS = [(7, 10), (12, 20), (14, 14), (15, 14), (28, 28), (1, 33), (45, 31), (122, 5)]


@pytest.fixture
def stored() -> torch.Tensor:
    return torch.randn(1, SIDE * SIDE, 6, generator=torch.Generator().manual_seed(0))


def as_image(flat: torch.Tensor) -> torch.Tensor:
    return flat.reshape(1, SIDE, SIDE, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("grid", GRIDS)
def test_equals_interpolate_with_the_official_scale_factor(
    stored: torch.Tensor, grid: tuple[int, int]
) -> None:
    factors = ((grid[0] + 0.1) / SIDE, (grid[1] + 0.1) / SIDE)
    expected = interpolate(as_image(stored), scale_factor=factors, mode="bicubic").flatten(2).transpose(1, 2)
    # one pixel wider than high, so that even the stored grid is resampled
    size = (grid[0] * 16, grid[1] * 16 + 1)
    ours = resize_positions(stored, grid, image_size=size)
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() < 1e-6 * stored.abs().max() * 4


@pytest.mark.parametrize("grid", GRIDS)
def test_without_offset_it_is_the_usual_resize(stored: torch.Tensor, grid: tuple[int, int]) -> None:
    expected = interpolate(as_image(stored), size=grid, mode="bicubic").flatten(2).transpose(1, 2)
    ours = resize_positions(stored, grid, image_size=(1, 2), offset=0.0)
    assert (ours - expected).abs().max() < 1e-6 * stored.abs().max() * 4


def test_stored_grid_of_a_square_image_is_left_alone(stored: torch.Tensor) -> None:
    assert torch.equal(resize_positions(stored, (14, 14), image_size=(224, 224)), stored)
    # the official code resamples 14 x 14 tokens too, where the image itself is not square
    assert not torch.equal(resize_positions(stored, (14, 14), image_size=(224, 230)), stored)


def test_a_traced_resize_gives_the_stored_values_at_the_stored_size(stored: torch.Tensor) -> None:
    class Resize(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            height, width = images.shape
            return resize_positions(stored, (height // 16, width // 16), image_size=(height, width))

    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic, 1: dynamic},)
    traced = torch.export.export(Resize(), (torch.zeros(125, 170),), dynamic_shapes=shapes).module()
    assert torch.equal(traced(torch.zeros(224, 224)), stored)
    for size in [(224, 230), (125, 170), (333, 500)]:
        expected = resize_positions(stored, (size[0] // 16, size[1] // 16), image_size=size)
        assert (traced(torch.zeros(size)) - expected).abs().max() < 1e-6


def test_gradient_reaches_every_stored_position(stored: torch.Tensor) -> None:
    stored.requires_grad_()
    resize_positions(stored, (20, 20), image_size=(320, 320)).square().sum().backward()
    assert stored.grad is not None
    assert bool((stored.grad.abs().sum(-1) > 0).all())
