"""The permutohedral lattice of images (Adams, Baek and Davis, 2010): its vertices by one sort, in PyTorch.

Every operation here rounds alike on a CPU and on a GPU, so that both find the same vertices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wsss_rt.errors import WsssError

# corners of pixels that are summed together; a vertex with more of them is summed from several pieces
PIECE = 128
_LARGEST_INT32 = 2**31 - 1
# one below the sign bit of a vertex's name
_NAME_LIMIT = 2**62


class Lattice(NamedTuple):
    """Where pixels and vertices touch; K corners a pixel, P pixels, M vertices.

    A corner of a pixel has the number ``corner * P + pixel``, its place in ``vertices`` and ``weights``.

    Attributes:
        vertices: (K, P) int32, the vertices around each pixel.
        weights: (K, P) float32, the pixel's share of each.
        neighbours: (axes, 2, M) int32, the vertices next to each along every axis; -1 where there is none.
        corners: (K * P,) int32, numbers of all corners, in the order of their vertices.
        pieces: (S + 1,) int32, where each piece of at most ``PIECE`` of them begins, and their end.
        owners: (M + 1,) int32, where each vertex's pieces begin, and their end.
    """

    vertices: Tensor
    weights: Tensor
    neighbours: Tensor
    corners: Tensor
    pieces: Tensor
    owners: Tensor


class Names(NamedTuple):
    """How a vertex becomes an integer: its first d coordinates in a mixed radix, so that steps add constants.

    Attributes:
        scale: of each feature.
        radix: of each coordinate.
        origin: name of the vertex at zero.
        steps: what is added to a name along each of the d + 1 axes.
        count: names are in 0..count - 1.
    """

    scale: list[float]
    radix: list[int]
    origin: int
    steps: list[int]
    count: int  # type: ignore[assignment] # hides the method of tuples, which nobody calls here


def name_vertices(height: int, width: int, deviations: Sequence[float], images: int = 1) -> Names:
    """Names for all that images of this size may need.

    Args:
        height, width: of the largest image, pixels.
        deviations: of the Gaussian in x and y, pixels, and perhaps in r, g, b, levels of 0..255.
        images: whose names must be kept apart.

    Raises:
        WsssError: the deviations are so small for this image that its vertices cannot be told apart.
    """
    d = len(deviations)
    # the blur's own variance decides how wide a unit of the lattice is (section 3.1)
    unit = math.sqrt(2 / 3) * (d + 1)
    scale = [unit / math.sqrt((i + 1) * (i + 2)) / deviations[i] for i in range(d)]
    largest = [s * (most - 1) for s, most in zip(scale, (width, height, 256, 256, 256), strict=False)]
    margin = 3 * (d + 1)
    radix, origin, product = [], 0, 1
    for i in range(d):
        start = math.floor(-i * largest[i - 1] if i else 0.0) - margin
        radix.append(product)
        origin -= start * product
        product *= math.ceil(sum(largest[i:])) + margin - start + 1
    if product * images >= _NAME_LIMIT:
        raise WsssError(
            f"a kernel with deviations {', '.join(f'{value:g}' for value in deviations)} is too narrow "
            f"for {images} image{'s' * (images > 1)} of {width}x{height} px",
            fix="use larger ones" + ", or refine fewer images at a time" * (images > 1),
            code="narrow_kernel",
        )
    total = sum(radix)
    steps = [(d + 1) * value - total for value in radix] + [-total]
    return Names(scale, radix, origin, steps, product)


def embed(features: Sequence[Tensor], names: Names) -> tuple[Tensor, Tensor]:
    """The simplex around each pixel.

    Args:
        features: d of them, each (P,) float32, not scaled.
        names: of the vertices.

    Returns:
        Names (d + 1, P) int64 and barycentric weights (d + 1, P) float32 of its vertices.
    """
    d = len(features)
    count = d + 1
    lifted = features[0].new_empty((count, len(features[0])))
    total = torch.zeros_like(features[0])
    for i in range(d, 0, -1):
        scaled = features[i - 1] * names.scale[i - 1]
        lifted[i] = total - scaled * i
        total = total + scaled
    lifted[0] = total
    # the nearest point with multiples of d+1 as coordinates, and by how far their sum misses 0
    nearest = (lifted * (1 / count)).round_()
    excess = nearest.sum(dim=0).int()
    base = nearest.mul_(count)
    # unscaled: rounding must not make up or break a tie, which decides what vertices exist
    offset = lifted - base
    rank = torch.empty_like(offset, dtype=torch.int64)
    for i in range(count):
        earlier = (offset > offset[i]).sum(dim=0) + (offset[:i] == offset[i]).sum(dim=0)
        rank[i] = earlier + excess
    turn = (rank < 0).int().sub_((rank > d).int()).mul_(count)
    rank += turn
    base += turn
    offset = (lifted - base).mul_(1 / count)
    ordered = torch.empty_like(offset).scatter_(0, rank, offset)
    which = torch.empty_like(rank).scatter_(
        0, rank, torch.arange(count, device=rank.device)[:, None].expand_as(rank)
    )
    jump = torch.tensor([*(count * value for value in names.radix), 0], device=rank.device)
    found, weights = torch.empty_like(rank), torch.empty_like(offset)
    found[0] = names.origin
    for i, value in enumerate(names.radix):
        found[0] += base[i].long() * value
    weights[0] = 1 + ordered[d] - ordered[0]
    for k in range(1, count):
        # to the next corner of the simplex
        found[k] = found[k - 1] + sum(names.radix) - jump[which[count - k]]
        weights[k] = ordered[d - k] - ordered[count - k]
    return found, weights


def connect(found: Tensor, weights: Tensor, names: Names) -> Lattice:
    """The lattice of pixels whose vertices are named; waits for the GPU, which alone knows their number.

    Args:
        found: (K, P) int64, names; those of different images may not meet.
        weights: (K, P) float32.
        names: how they were made.
    """
    ordered, corners = found.flatten().sort(stable=True)
    unique, sizes = torch.unique_consecutive(ordered, return_counts=True)
    number = torch.arange(len(unique), device=found.device, dtype=torch.int32)
    vertices = torch.empty(found.numel(), dtype=torch.int32, device=found.device)
    vertices[corners] = number.repeat_interleave(sizes, output_size=len(corners))
    parts = (sizes + (PIECE - 1)) // PIECE
    owners, first = _begins(parts), _begins(sizes)
    owner = number.long().repeat_interleave(parts)
    pieces = first[owner] + (torch.arange(len(owner), device=found.device) - owners[owner]) * PIECE
    steps = torch.tensor(names.steps, device=found.device)[:, None, None]
    wanted = unique + steps * torch.tensor([1, -1], device=found.device)[:, None]
    place = torch.searchsorted(unique, wanted.contiguous()).clamp_(max=len(unique) - 1)
    neighbours = torch.where(unique[place] == wanted, place, -1).int()
    ends = torch.cat((pieces, first[-1:]))
    return Lattice(vertices.view(found.shape), weights, neighbours, corners.int(), ends.int(), owners.int())


def join(lattices: Sequence[tuple[Lattice, int, int]], corners: int, pixels: int) -> Lattice:
    """Several lattices as one, whose vertices do not touch.

    Args:
        lattices: each with its first corner and its first pixel.
        corners: of a pixel, in all.
        pixels: in all.

    Raises:
        WsssError: there are more corners than a 32-bit number counts.
    """
    if corners * pixels > _LARGEST_INT32:
        raise WsssError(
            f"a CRF of {pixels:,} px at once is more than its kernels count",
            fix="refine fewer or smaller images at a time",
            code="too_many_pixels",
        )
    axes = max(lattice.neighbours.shape[0] for lattice, _, _ in lattices)
    device = lattices[0][0].weights.device
    vertices = torch.empty((corners, pixels), dtype=torch.int32, device=device)
    weights = torch.empty((corners, pixels), dtype=lattices[0][0].weights.dtype, device=device)
    neighbours, numbers, pieces, owners = [], [], [], []
    vertex = entry = piece = 0
    for lattice, corner, pixel in lattices:
        count, own = lattice.vertices.shape
        block = (slice(corner, corner + count), slice(pixel, pixel + own))
        vertices[block] = lattice.vertices + vertex
        weights[block] = lattice.weights
        shifted = lattice.neighbours.new_full((axes, *lattice.neighbours.shape[1:]), -1)
        shifted[: len(lattice.neighbours)] = torch.where(
            lattice.neighbours < 0, -1, lattice.neighbours + vertex
        )
        neighbours.append(shifted)
        # the same corner's number among all pixels
        numbers.append((lattice.corners // own + corner) * pixels + lattice.corners % own + pixel)
        pieces.append(lattice.pieces[:-1] + entry)
        owners.append(lattice.owners[:-1] + piece)
        vertex, entry, piece = vertex + shifted.shape[2], entry + count * own, piece + len(pieces[-1])
    for starts, end in ((pieces, entry), (owners, piece)):
        starts.append(torch.tensor([end], dtype=torch.int32, device=device))
    return Lattice(
        vertices,
        weights,
        torch.cat(neighbours, dim=2),
        torch.cat(numbers),
        torch.cat(pieces),
        torch.cat(owners),
    )


def _begins(sizes: Tensor) -> Tensor:
    """Where each of some neighbouring ranges begins, and the end."""
    return torch.nn.functional.pad(sizes.cumsum(dim=0), (1, 0))
