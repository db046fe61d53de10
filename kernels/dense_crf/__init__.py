"""The dense CRF on the device: Krähenbühl and Koltun's mean field with pydensecrf's semantics, over a batch."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from wsss_rt.kernels._dispatch import choose_triton, record
from wsss_rt.kernels.dense_crf import reference
from wsss_rt.kernels.dense_crf.lattice import Lattice, connect, embed, join, name_vertices

OPERATOR = "dense_crf"
# smaller probabilities count as this, so that no pixel is certain
LEAST_PROBABILITY = 1e-5
#: The most classes that a kernel holds in one tile.
MAX_CLASSES = 4096
# a class that an image of the batch does not have: far below every energy
_ABSENT = -1e4


def dense_crf(
    images: Tensor,
    probabilities: Tensor,
    *,
    spatial_sxy: float = 3.0,
    spatial_compat: float = 3.0,
    bilateral_sxy: float = 80.0,
    bilateral_srgb: float = 13.0,
    bilateral_compat: float = 10.0,
    iterations: int = 10,
    stop: float = 0.0,
) -> Tensor:
    """Marginals of the fully connected CRF (NeurIPS 2011) of each image after some steps of mean field.

    Semantics, names and defaults are those of ``wsss_rt.refine.dense_crf``, and so are the numbers, to 1e-4.
    The Triton kernels give the same bits from run to run; the reference, on a GPU, does not (``index_add_``).

    Args:
        images: (B, H, W, 3) uint8 RGB, on one device with the probabilities.
        probabilities: (B, C, H, W) float32, C >= 1, finite (NaN spreads over its image); clipped to 1e-5..1,
            and need not sum to 1.
        spatial_sxy: standard deviation of the kernel in position, pixels, > 0.
        spatial_compat: its strength, >= 0.
        bilateral_sxy: standard deviation in position of the kernel in position and colour, pixels, > 0.
        bilateral_srgb: its standard deviation in colour, levels of 0..255, > 0.
        bilateral_compat: its strength, >= 0.
        iterations: steps of mean field, >= 0.
        stop: an image ends early, one step after the first that changed the best class of at most this share
            of its pixels; 0 takes all steps.

    Returns:
        (B, C, H, W) float32 in 0..1, which sum to 1 over C. No gradient passes.

    Raises:
        ValueError: a shape or type is not as above.
        KernelUnavailableError: ``WSSS_RT_KERNELS=triton``, and the kernels cannot run.
        WsssError: a kernel too narrow for images of this size, or more pixels at once than can be counted.
    """
    if probabilities.dim() != 4 or images.dim() != 4 or len(images) != len(probabilities):
        shapes = f"{tuple(images.shape)} and {tuple(probabilities.shape)}"
        raise ValueError(f"images must be (B, H, W, 3) and probabilities (B, C, H, W), and are {shapes}")
    if not len(images):
        return torch.empty_like(probabilities)
    found = dense_crf_each(
        list(images),
        list(probabilities),
        spatial_sxy=spatial_sxy,
        spatial_compat=spatial_compat,
        bilateral_sxy=bilateral_sxy,
        bilateral_srgb=bilateral_srgb,
        bilateral_compat=bilateral_compat,
        iterations=iterations,
        stop=stop,
    )
    return torch.stack(found)


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
) -> list[Tensor]:
    """:func:`dense_crf` of images of several sizes and numbers of classes, in the launches of one.

    Args:
        images: each (H, W, 3) uint8.
        probabilities: each (C, H, W) float32, of its image.

    Other arguments, and what is raised, as there.

    Returns:
        Marginals, each (C, H, W) float32; for an image alone the same as in any company, to rounding.
    """
    _check(images, probabilities)
    if not images:
        return []
    sizes = [image.shape[0] * image.shape[1] for image in images]
    firsts = [sum(sizes[:index]) for index in range(len(sizes))]
    classes = max(len(planes) for planes in probabilities)
    device = probabilities[0].device
    log_p = torch.full((classes, sum(sizes)), _ABSENT, dtype=torch.float32, device=device)
    for planes, first, size in zip(probabilities, firsts, sizes, strict=True):
        clipped = planes.reshape(len(planes), size).clamp(LEAST_PROBABILITY, 1)
        log_p[: len(planes), first : first + size] = clipped.log_()
    refusal = f"{classes} classes are more than {MAX_CLASSES}" if classes > MAX_CLASSES else None
    path: ModuleType = reference
    if choose_triton(OPERATOR, log_p, refusal=refusal):
        from wsss_rt.kernels.dense_crf import triton as path
    record(OPERATOR, "reference" if path is reference else f"triton[{path.launches(iterations)}]")
    # in position, the lattice depends on the image's size alone
    near: dict[tuple[int, int], Lattice] = {}
    for image in images:
        size_of = (image.shape[0], image.shape[1])
        if size_of not in near:
            near[size_of] = _build([image], (spatial_sxy,) * 2, spatial_compat, path)
    parts = [
        (near[image.shape[0], image.shape[1]], 0, first) for image, first in zip(images, firsts, strict=True)
    ]
    deviations = (*(bilateral_sxy,) * 2, *(bilateral_srgb,) * 3)
    parts.append((_build(images, deviations, bilateral_compat, path), 3, 0))
    both = join(parts, 9, sum(sizes))
    del parts, near
    marginals = path.mean_field(log_p, both, sizes, iterations, float(stop))
    return [
        marginals[: len(planes), first : first + size].reshape(planes.shape)
        for planes, first, size in zip(probabilities, firsts, sizes, strict=True)
    ]


def _build(images: Sequence[Tensor], deviations: Sequence[float], strength: float, path: ModuleType) -> Lattice:
    """The lattice of a kernel on several images, with the symmetric normalisation and the strength in it.

    Splat and slice both carry ``sqrt(strength / filter of ones)``, so that they apply ``strength n K n`` with
    n = 1/sqrt(K 1).
    """
    heights, widths = ([image.shape[axis] for image in images] for axis in (0, 1))
    names = name_vertices(max(heights), max(widths), deviations, len(images))
    places = {size: _positions(*size, images[0].device) for size in zip(heights, widths, strict=True)}
    features = [torch.cat(axis) for axis in zip(*(places[image.shape[:2]] for image in images), strict=True)]
    if len(deviations) > 2:
        features += torch.cat([image.reshape(-1, 3) for image in images]).T.float().unbind(0)
    found, weights = embed(features, names)
    first = 0
    for index, (height, width) in enumerate(zip(heights, widths, strict=True)):
        found[:, first : first + height * width] += index * names.count
        first += height * width
    lattice = connect(found, weights, names)
    lattice.weights.mul_((strength / (path.density(lattice) + 1e-20)).sqrt_())
    return lattice


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
