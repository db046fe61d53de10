"""Position embeddings, and their resizing to another token grid.

The resize is written as two small matrices built from elementary operations, since `interpolate` with a scale
factor neither traces with a dynamic size nor exists with the same sampling step in every runtime.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wsss_rt.kernels.precision import without_autocast

# the cubic convolution coefficient of `torch.nn.functional.interpolate(mode="bicubic")`
_A = -0.75


def new_positions(count: int, dim: int) -> nn.Parameter:
    """Learned position embedding (1, count, dim), truncated normal with standard deviation 0.02."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, dim), std=0.02))


def resize_positions(
    stored: Tensor,
    grid: tuple[int, int],
    *,
    image_size: tuple[int, int],
    offset: float = 0.1,
    bilinear: bool = False,
) -> Tensor:
    """Resize the embedding of a square grid to ``grid``, border clamped, without antialiasing.

    Source coordinate of row i: ``(i + 0.5) * side / (rows + offset) - 0.5``. The offset of 0.1 that MCTformer
    V1 and V2 use guards a floor in the original code, and moves the samples; 0 gives the usual resize. The
    stored values come back untouched when the grid is the stored one and the image is square.

    Args:
        stored: (1, side * side, D), row-major.
        grid: rows and columns of tokens; may be symbolic under ``torch.export``.
        image_size: height and width in pixels; it decides whether the image counts as square.
        offset: added to the grid's size in the sampling step, in tokens.
        bilinear: weigh the two nearest positions per axis; four by cubic convolution otherwise.

    Returns:
        (1, rows * columns, D), in the dtype of ``stored``.
    """
    side = int(stored.shape[1] ** 0.5)
    rows, columns = grid
    # symbolic sizes are no `int`: tracing takes the general path, which gives the same values
    if all(type(value) is int for value in (*grid, *image_size)) and (
        rows == columns == side and image_size[0] == image_size[1]
    ):
        return stored
    device = stored.device
    square = torch.logical_and(_scalar(rows, device) == side, _scalar(columns, device) == side)
    as_stored = torch.logical_and(square, _scalar(image_size[0], device) == _scalar(image_size[1], device))
    with without_autocast(device):
        wide = torch.promote_types(stored.dtype, torch.float32)
        table = stored.to(wide).reshape(side, side, -1)
        weigh = _linear if bilinear else _cubic
        of_rows = _sampling_matrix(rows, side, as_stored, offset=offset, weigh=weigh).to(wide)
        of_columns = _sampling_matrix(columns, side, as_stored, offset=offset, weigh=weigh).to(wide)
        across_rows = of_rows @ table.reshape(side, -1)
        resized = of_columns @ across_rows.reshape(rows, side, -1)
    return resized.reshape(1, rows * columns, -1).to(stored.dtype)


def _sampling_matrix(
    size: int, side: int, as_stored: Tensor, *, offset: float, weigh: Callable[[Tensor], Tensor]
) -> Tensor:
    """(size, side) float32; row i holds the weights of the stored positions for sample i."""
    device = as_stored.device
    step = torch.where(as_stored, 1.0, side / (_scalar(size, device) + offset))
    coordinate = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * step - 0.5
    base = torch.floor(coordinate)
    fraction = coordinate - base
    source = torch.arange(side, device=device, dtype=torch.float32)
    matrix = torch.zeros_like(coordinate)[:, None] * source
    for tap in (-1, 0, 1, 2):
        # several taps meet on the border position once they are clamped, hence a sum and not an assignment
        index = (base + tap).clamp(0, side - 1)
        hit = (index[:, None] == source).to(torch.float32)
        matrix = matrix + hit * weigh((fraction - tap).abs())[:, None]
    return matrix


def _cubic(distance: Tensor) -> Tensor:
    """Weight of a sample at this distance, in positions (Keys 1981)."""
    near = ((_A + 2) * distance - (_A + 3)) * distance * distance + 1
    far = ((_A * distance - 5 * _A) * distance + 8 * _A) * distance - 4 * _A
    return torch.where(distance <= 1, near, far)


def _linear(distance: Tensor) -> Tensor:
    return (1 - distance).clamp(min=0)


def _scalar(value: int, device: torch.device) -> Tensor:
    return torch.scalar_tensor(value, dtype=torch.float32, device=device)
