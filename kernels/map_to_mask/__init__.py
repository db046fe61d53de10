"""Token maps to a mask: resized, normalised and decided in two launches; no plane of pixels exists."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wsss_rt.kernels._dispatch import choose_triton, record
from wsss_rt.kernels.map_to_mask import reference
from wsss_rt.kernels.map_to_mask.taps import UPSAMPLES, Taps, taps_for

__all__ = [
    "NORMALISE_EPSILON",
    "UPSAMPLES",
    "Taps",
    "map_planes",
    "map_to_mask",
    "merge_grids",
    "planes_to_mask",
]

OPERATOR, PLANES, DECIDE = "map_to_mask", "map_planes", "planes_to_mask"
NORMALISATIONS = ("minmax", "peak")
#: Keeps a constant map at 0 instead of 0/0; the same as ``wsss_rt.localize.NORMALISE_EPSILON``.
NORMALISE_EPSILON = 1e-8
Grids = tuple[tuple[int, int], ...]


def merge_grids(maps: Sequence[Tensor], present: Sequence[int]) -> tuple[Tensor, Grids]:
    """The maps of some classes from all passes of an image, in one buffer.

    Mirror images are turned back and added, and so are passes of the same size: resizing is linear.

    Args:
        maps: per pass (F, C, h, w) float32; row 1, where there is one, belongs to the mirror image.
        present: 0-based indices of the classes.

    Returns:
        (K, values) float32, and the sizes (h, w) of the grids that lie in it one after another.
    """
    index = torch.tensor(list(present), dtype=torch.int64, device=maps[0].device)
    grids: dict[tuple[int, int], Tensor] = {}
    for entry in maps:
        tokens = entry[0].index_select(0, index).float()
        if len(entry) == 2:
            tokens = tokens + entry[1].index_select(0, index).float().flip(-1)
        shape = (tokens.shape[1], tokens.shape[2])
        grids[shape] = grids[shape] + tokens if shape in grids else tokens
    flat = [tokens.flatten(1) for tokens in grids.values()]
    return (flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)).contiguous(), tuple(grids)


def map_to_mask(
    tokens: Tensor,
    grids: Grids,
    classes: Sequence[int],
    size: tuple[int, int],
    *,
    upsample: str = "bilinear",
    normalise: str = "minmax",
    background: float,
    ignore_band: tuple[float, float] | None = None,
    wide: bool = False,
) -> tuple[Tensor, Tensor]:
    """What ``wsss_rt.localize`` does between ``merge_passes`` and the end of ``decide`` (README.md).

    Args:
        tokens: (K, values) float32, as :func:`merge_grids` gives it.
        grids: likewise.
        classes: 0-based index of each map's class.
        size: (H, W) of the mask, pixels.
        upsample: ``bilinear``, ``aligned`` or ``bicubic``.
        normalise: ``minmax`` or ``peak``.
        background: constant score of the background.
        ignore_band: pixels whose best class score lies in [low, high) become the ignore value.
        wide: masks of 16 bits.

    Returns:
        (H, W) uint8, or uint16 where ``wide``: 0 background, class index + 1, 255 or 65535 ignore; and
        (1 + 2 K,) float64: the sum over the pixels of the margin between the best and the second best score,
        per class the sum of its scores over the pixels that it won, and the number of these.

    Raises:
        ValueError: an unknown rule, or shapes that do not fit together.
        KernelUnavailableError: ``WSSS_RT_KERNELS=triton``, and the kernel cannot run.
    """
    taps = _checked(tokens, grids, size, upsample, normalise)
    if len(classes) != len(tokens):
        raise ValueError(f"{len(tokens)} maps cannot be those of {len(classes)} classes")
    # without a class there is nothing to compute, and no kernel is asked for
    if not len(tokens) or not choose_triton(OPERATOR, tokens):
        record(OPERATOR, "reference")
        planes = reference.planes(tokens, taps, normalise, NORMALISE_EPSILON)
        return _by_reference(planes, classes, size, background, ignore_band, None, wide, tokens.device)
    from wsss_rt.kernels.map_to_mask import triton

    record(OPERATOR, "triton[range,decide]")
    mask, sums = triton.map_to_mask(
        tokens.contiguous(), *taps, _names(classes, tokens.device), list(size), float(background),
        list(ignore_band or ()), NORMALISE_EPSILON, normalise == "peak", wide,
    )  # fmt: skip
    return mask, _in_units(sums, len(classes), triton.UNIT)


def map_planes(
    tokens: Tensor,
    grids: Grids,
    size: tuple[int, int],
    *,
    upsample: str = "bilinear",
    normalise: str = "minmax",
) -> Tensor:
    """The normalised maps at the image's size, for what needs all of them: refiners, and maps to be kept.

    Args:
        tokens, grids, size, upsample, normalise: as :func:`map_to_mask` takes them.

    Returns:
        (K, H, W) float32 in 0..1.

    Raises:
        ValueError: an unknown rule, or shapes that do not fit together.
        KernelUnavailableError: ``WSSS_RT_KERNELS=triton``, and the kernel cannot run.
    """
    taps = _checked(tokens, grids, size, upsample, normalise)
    if not len(tokens) or not choose_triton(PLANES, tokens):
        record(PLANES, "reference")
        planes = list(reference.planes(tokens, taps, normalise, NORMALISE_EPSILON))
        return torch.stack(planes) if planes else tokens.new_zeros((0, *size))
    from wsss_rt.kernels.map_to_mask import triton

    record(PLANES, "triton[range,planes]")
    return triton.map_planes(tokens.contiguous(), *taps, list(size), NORMALISE_EPSILON, normalise == "peak")


def planes_to_mask(
    planes: Tensor,
    classes: Sequence[int],
    *,
    background: float | Tensor,
    ignore_band: tuple[float, float] | None = None,
    sure_background: Tensor | None = None,
    wide: bool = False,
) -> tuple[Tensor, Tensor]:
    """The decision alone, on planes that a refiner or a segmenter gave.

    Args:
        planes: (K, H, W) float32.
        classes: 0-based index of each plane's class.
        background: constant score of the background, or its plane (H, W) float32.
        ignore_band: as :func:`map_to_mask` takes it.
        sure_background: (H, W) bool; background elsewhere becomes the ignore value, and everything here is
            background.
        wide: masks of 16 bits.

    Returns:
        As :func:`map_to_mask`.

    Raises:
        ValueError: shapes that do not fit together.
        KernelUnavailableError: ``WSSS_RT_KERNELS=triton``, and the kernel cannot run.
    """
    if planes.dim() != 3 or len(classes) != len(planes):
        raise ValueError(f"{tuple(planes.shape)} are not the planes of {len(classes)} classes")
    size = (planes.shape[1], planes.shape[2])
    for name, plane in (("background", background), ("sure_background", sure_background)):
        if isinstance(plane, Tensor) and tuple(plane.shape) != size:
            raise ValueError(f"{name} must be {size}, and is {tuple(plane.shape)}")
    if not len(planes) or not choose_triton(DECIDE, planes):
        record(DECIDE, "reference")
        return _by_reference(
            planes, classes, size, background, ignore_band, sure_background, wide, planes.device
        )
    from wsss_rt.kernels.map_to_mask import triton

    record(DECIDE, "triton[decide]")
    plane = background.contiguous() if isinstance(background, Tensor) else None
    sure = None if sure_background is None else sure_background.to(torch.uint8).contiguous()
    mask, sums = triton.planes_to_mask(
        planes.contiguous(), _names(classes, planes.device), plane, sure,
        background if isinstance(background, float) else 0.0, list(ignore_band or ()), wide,
    )  # fmt: skip
    return mask, _in_units(sums, len(classes), triton.UNIT)


def _checked(tokens: Tensor, grids: Grids, size: tuple[int, int], upsample: str, normalise: str) -> Taps:
    if normalise not in NORMALISATIONS:
        raise ValueError(f"normalise {normalise!r} is none of {', '.join(NORMALISATIONS)}")
    values = sum(height * width for height, width in grids)
    if tokens.dim() != 2 or tokens.shape[1] != values or tokens.dtype != torch.float32:
        raise ValueError(
            f"tokens must be (K, {values}) float32, and are {tuple(tokens.shape)} {tokens.dtype}"
        )
    return taps_for(tuple(grids), (size[0], size[1]), upsample, tokens.device)


def _by_reference(
    planes: object,
    classes: Sequence[int],
    size: tuple[int, int],
    background: float | Tensor,
    band: tuple[float, float] | None,
    sure: Tensor | None,
    wide: bool,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    mask, sums = reference.decide(
        planes, classes, size, background=background, band=band, sure=sure,  # type: ignore[arg-type]
        ignore=65_535 if wide else 255, device=device,
    )  # fmt: skip
    return mask.to(torch.uint16 if wide else torch.uint8), sums


def _names(classes: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(list(classes), dtype=torch.int32, device=device)


def _in_units(sums: Tensor, classes: int, unit: float) -> Tensor:
    found = sums.double()
    found[: 1 + classes] *= unit
    return found
