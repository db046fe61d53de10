"""The dense CRF of a batch on the device: Krähenbühl and Koltun's mean field, as pydensecrf computes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wsss_rt.kernels._dispatch import choose_triton, record
from wsss_rt.kernels.dense_crf import reference
from wsss_rt.kernels.dense_crf.lattice import Lattice, connect, embed, join, name_vertices
from wsss_rt.kernels.dense_crf.memory import crf_bytes

OPERATOR = "dense_crf"
# smaller probabilities count as this, so that no pixel is certain
LEAST_PROBABILITY = 1e-5
#: The most classes that a kernel holds in one tile.
MAX_CLASSES = 4096
# a class that an image of the batch does not have: far below every energy
_ABSENT = -1e4


def dense_crf(images: Tensor, probabilities: Tensor, **settings: Any) -> Tensor:
    """:func:`dense_crf_each` of images of one size and number of classes.

    Args:
        images: (B, H, W, 3) uint8 RGB.
        probabilities: (B, C, H, W) float32.
        settings: as there; what is raised, too.

    Returns:
        (B, C, H, W) float32.

    Raises:
        ValueError: a shape or type is not as above.
    """
    if probabilities.dim() != 4 or images.dim() != 4 or len(images) != len(probabilities):
        shapes = f"{tuple(images.shape)} and {tuple(probabilities.shape)}"
        raise ValueError(f"images must be (B, H, W, 3) and probabilities (B, C, H, W), and are {shapes}")
    found = dense_crf_each(list(images), list(probabilities), **settings)
    return torch.stack(found) if found else torch.empty_like(probabilities)


@torch.no_grad()
def dense_crf_each(
    images: Sequence[Tensor],
    probabilities: Sequence[Tensor],
    *,
    spatial_sxy: float = 3.0,
    spatial_compat: float = 3.0,
    bilateral_sxy: float = 80.0,
    bilateral_srgb: float = 13.0,
    bilateral_compat: float = 10.0,
    iterations: int = 10,
    stop: float = 0.0,
    admit: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Marginals of the fully connected CRF (NeurIPS 2011) of each image after some steps of mean field.

    Semantics, names and defaults are those of ``wsss_rt.refine.dense_crf``, and so are the numbers, to 1e-4.
    Images may be of several sizes and numbers of classes; they share their launches. The Triton kernels give
    the same bits from run to run; the reference, on a GPU, does not (``index_add_``).

    Args:
        images: each (H, W, 3) uint8 RGB, on one device with the probabilities.
        probabilities: of its image, each (C, H, W) float32, C >= 1, finite (NaN spreads over its image);
            clipped to 1e-5..1, and need not sum to 1.
        spatial_sxy: standard deviation of the kernel in position, pixels, > 0.
        spatial_compat: its strength, >= 0.
        bilateral_sxy: standard deviation in position of the kernel in position and colour, pixels, > 0.
        bilateral_srgb: its standard deviation in colour, levels of 0..255, > 0.
        bilateral_compat: its strength, >= 0.
        iterations: steps of mean field, >= 0.
        stop: an image ends early, one step after the first that changed the best class of at most this share
            of its pixels; 0 takes all steps.
        admit: called with the bytes that this call takes at least, before it takes them, and again once the
            vertices are counted; raises to refuse.

    Returns:
        Marginals, each (C, H, W) float32 in 0..1, which sum to 1 over C; for an image alone the same as in
        any company, to rounding. No gradient passes.

    Raises:
        ValueError: a shape or type is not as above.
        KernelUnavailableError: ``WSSS_RT_KERNELS=triton``, and the kernels cannot run.
        WsssError: a kernel too narrow for images of this size, or more pixels at once than can be counted.
    """
    _check(images, probabilities)
    if not images:
        return []
    classes = max(len(planes) for planes in probabilities)
    refusal = f"{classes} classes are more than {MAX_CLASSES}" if classes > MAX_CLASSES else None
    path: ModuleType = reference
    if choose_triton(OPERATOR, probabilities[0], refusal=refusal):
        from wsss_rt.kernels.dense_crf import triton as path
    record(OPERATOR, "reference" if path is reference else f"triton[{path.launches(iterations)}]")
    count = {"pixels": sum(image.shape[0] * image.shape[1] for image in images), "classes": classes}
    kernels = path is not reference
    if admit is not None:
        admit(crf_bytes(**count, kernels=kernels))
    field = prepare(
        images,
        probabilities,
        spatial=(spatial_sxy, spatial_compat),
        bilateral=(bilateral_sxy, bilateral_srgb, bilateral_compat),
        density=path.density,
    )
    if admit is not None:
        admit(crf_bytes(**count, vertices=field.lattice.neighbours.shape[2], kernels=kernels))
    marginals = path.mean_field(*field, iterations, float(stop))
    parts = marginals.split(field.sizes, dim=1)
    return [
        part[: len(planes)].reshape(planes.shape) for part, planes in zip(parts, probabilities, strict=True)
    ]


class Field(NamedTuple):
    """What mean field runs on: images one after another.

    Attributes:
        log_p: (C, P), log-probabilities.
        lattice: of both kernels.
        sizes: pixels of each image.
    """

    log_p: Tensor
    lattice: Lattice
    sizes: list[int]


def prepare(
    images: Sequence[Tensor],
    probabilities: Sequence[Tensor],
    *,
    spatial: tuple[float, float],
    bilateral: tuple[float, float, float],
    density: Callable[[Lattice], Tensor],
    dtype: torch.dtype = torch.float32,
) -> Field:
    """Unary energies and both lattices.

    Args:
        images: each (H, W, 3) uint8.
        probabilities: each (C, H, W) float32.
        spatial: standard deviation and strength.
        bilateral: standard deviations in position and colour, and strength.
        density: the filter of ones on a lattice, (P,).
        dtype: float64 for what others are held against; vertices are found in float32 all the same.
    """
    sizes = [image.shape[0] * image.shape[1] for image in images]
    log_p = torch.full(
        (max(len(planes) for planes in probabilities), sum(sizes)),
        _ABSENT,
        dtype=dtype,
        device=images[0].device,
    )
    for planes, room in zip(probabilities, log_p.split(sizes, dim=1), strict=True):
        room[: len(planes)] = planes.flatten(1).to(dtype).clamp(LEAST_PROBABILITY, 1).log_()

    def build(chosen: Sequence[Tensor], deviations: tuple[float, ...], strength: float) -> Lattice:
        lattice = _connected(chosen, deviations, dtype)
        # splat and slice both carry it, so that they apply `strength n K n` with n = 1/sqrt(K 1)
        lattice.weights.mul_((strength / (density(lattice) + 1e-20)).sqrt_())
        return lattice

    # in position, the lattice depends on the image's size alone
    near: dict[tuple[int, ...], Lattice] = {}
    parts = []
    for index, image in enumerate(images):
        size = tuple(image.shape[:2])
        if size not in near:
            near[size] = build([image], (spatial[0],) * 2, spatial[1])
        parts.append((near[size], 0, sum(sizes[:index])))
    sxy, srgb, strength = bilateral
    parts.append((build(images, (sxy, sxy, srgb, srgb, srgb), strength), 3, 0))
    return Field(log_p, join(parts, 9, sum(sizes)), sizes)


def _connected(images: Sequence[Tensor], deviations: tuple[float, ...], dtype: torch.dtype) -> Lattice:
    """The lattice of several images in position, or in position and colour, with weights of this type."""
    heights, widths = ([image.shape[axis] for image in images] for axis in (0, 1))
    names = name_vertices(max(heights), max(widths), deviations, len(images))
    each = list(zip(heights, widths, strict=True))
    places = {size: _positions(*size, images[0].device) for size in dict.fromkeys(each)}
    features = [torch.cat(axis) for axis in zip(*(places[size] for size in each), strict=True)]
    if len(deviations) > 2:
        features += torch.cat([image.reshape(-1, 3) for image in images]).T.float().unbind(0)
    found, weights = embed(features, names)
    for index, part in enumerate(found.split([height * width for height, width in each], dim=1)):
        part += index * names.span
    return connect(found, weights.to(dtype), names)


def _positions(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """x and y of an image's pixels, (P,) float32."""
    y, x = (torch.arange(side, dtype=torch.float32, device=device) for side in (height, width))
    return x.repeat(height), y.repeat_interleave(width)


def _check(images: Sequence[Tensor], probabilities: Sequence[Tensor]) -> None:
    if len(images) != len(probabilities):
        raise ValueError(f"{len(images)} images and probabilities of {len(probabilities)}")
    for image, planes in zip(images, probabilities, strict=True):
        if image.dim() != 3 or image.shape[2] != 3 or image.dtype != torch.uint8 or not image.numel():
            raise ValueError(
                f"expected an image (H, W, 3) uint8 with pixels, got {image.dtype} {tuple(image.shape)}"
            )
        size = tuple(image.shape[:2])
        if planes.dim() != 3 or not len(planes) or tuple(planes.shape[1:]) != size:
            raise ValueError(f"expected probabilities (C, {size[0]}, {size[1]}), got {tuple(planes.shape)}")
        if planes.dtype != torch.float32 or planes.device != image.device:
            raise ValueError("probabilities must be float32 on the device of their image")
