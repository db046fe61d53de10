"""Inner loops of the permutohedral lattice (Adams, Baek and Davis, 2010).

A d-dimensional feature is lifted to the hyperplane of d+1 coordinates whose sum is zero. The vertices of the
lattice there have integer coordinates that are all equal modulo d+1; a point lies in a simplex of d+1
vertices and is written as their barycentric mixture. Filtering is splat (pixels to vertices), blur with
[1/2 1 1/2] along each of the d+1 lattice directions, and slice (vertices to pixels).

A vertex is named by one integer: its first d coordinates in a mixed radix. The name is linear in the
coordinates, so that a step along the lattice adds a constant to it, and no coordinates need to be stored.

Values lie as (vertices, lanes) float32 with the classes in lanes, a multiple of four, so that the four lanes
of a vertex are one load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from wsss_rt.refine.jit import kernel

# odd, about 2^64 over the golden ratio: the top bits of a product with it depend on every bit of the name
_MIX = np.int64(-7046029254386353131)
_EMPTY = np.int64(-1)
_FIRST_BITS = 12


@kernel
def _slot(name, bits):  # type: ignore[no-untyped-def]
    return np.int64(np.uint64(name * _MIX) >> np.uint64(64 - bits))


@kernel
def _insert(names, numbers, bits, name, number):  # type: ignore[no-untyped-def]
    """Number under which a name stands in the table; ``number`` where it is new."""
    mask = (np.int64(1) << bits) - 1
    slot = _slot(name, bits)
    while names[slot] != name:
        if names[slot] == _EMPTY:
            names[slot] = name
            numbers[slot] = number
            return number
        slot = (slot + 1) & mask
    return np.int64(numbers[slot])


@kernel
def _find(names, numbers, bits, name, missing):  # type: ignore[no-untyped-def]
    mask = (np.int64(1) << bits) - 1
    slot = _slot(name, bits)
    while names[slot] != name:
        if names[slot] == _EMPTY:
            return missing
        slot = (slot + 1) & mask
    return np.int64(numbers[slot])


def _embedder(dimensions: int) -> Callable[..., Any]:
    """Kernel for features (x, y) or (x, y, r, g, b): their number is a constant in it, and loops unroll."""
    corners = dimensions + 1
    step = np.float32(corners)
    inverse = np.float32(1 / corners)

    @kernel
    def embed(image, first, last, scale, radix, origin, vertices, weights):  # type: ignore[no-untyped-def]
        """Place the pixels of rows [first, last) in a lattice of their own; returns its vertices' names."""
        width = image.shape[1]
        lifted = np.empty(corners, np.float32)
        scaled = np.empty(dimensions, np.float32)
        base = np.empty(corners, np.float32)
        offset = np.empty(corners, np.float32)
        sorted_offset = np.empty(corners, np.float32)
        sorted_radix = np.empty(corners, np.int64)
        previous_names = np.full(corners, _EMPTY, np.int64)
        previous = np.zeros(corners, np.int64)
        bits = np.int64(_FIRST_BITS)
        names = np.full(np.int64(1) << bits, _EMPTY, np.int64)
        numbers = np.empty(np.int64(1) << bits, np.int32)
        order = np.empty(np.int64(1) << (bits - 1), np.int64)
        count = np.int64(0)
        all_radix = np.int64(0)
        for i in range(dimensions):
            all_radix += radix[i]
        for y in range(first, last):
            for x in range(width):
                scaled[0] = np.float32(x) * scale[0]
                scaled[1] = np.float32(y) * scale[1]
                if dimensions == 5:
                    scaled[2] = np.float32(image[y, x, 0]) * scale[2]
                    scaled[3] = np.float32(image[y, x, 1]) * scale[3]
                    scaled[4] = np.float32(image[y, x, 2]) * scale[4]
                # lift: the rows of the triangular basis of the plane
                total = np.float32(0)
                for i in range(dimensions, 0, -1):
                    lifted[i] = total - np.float32(i) * scaled[i - 1]
                    total += scaled[i - 1]
                lifted[0] = total
                # the nearest point with multiples of d+1 as coordinates, and by how far their sum misses 0
                excess = np.float32(0)
                for i in range(corners):
                    nearest = np.rint(lifted[i] * inverse)
                    excess += nearest
                    base[i] = nearest * step
                    # unscaled: rounding must not make up or break a tie, which decides what vertices exist
                    offset[i] = lifted[i] - base[i]
                shift = np.int64(excess)
                name = origin
                for i in range(corners):
                    # how many offsets are larger; ties go to the earlier coordinate
                    rank = shift
                    for j in range(corners):
                        if j < i:
                            rank += offset[j] >= offset[i]
                        elif j > i:
                            rank += offset[j] > offset[i]
                    coordinate = base[i]
                    if rank < 0:
                        rank += corners
                        coordinate += step
                    elif rank > dimensions:
                        rank -= corners
                        coordinate -= step
                    sorted_offset[rank] = (lifted[i] - coordinate) * inverse
                    if i < dimensions:
                        sorted_radix[rank] = radix[i]
                        name += np.int64(coordinate) * radix[i]
                    else:
                        sorted_radix[rank] = 0
                pixel = y * width + x
                for k in range(corners):
                    if k == 0:
                        weight = np.float32(1) + sorted_offset[dimensions] - sorted_offset[0]
                    else:
                        weight = sorted_offset[dimensions - k] - sorted_offset[corners - k]
                        # to the next corner of the simplex
                        name += all_radix - corners * sorted_radix[corners - k]
                    weights[pixel, k] = weight
                    # neighbouring pixels share most of their corners
                    if name != previous_names[k]:
                        number = _insert(names, numbers, bits, name, count)
                        if number == count:
                            order[count] = name
                            count += 1
                            if count == order.size:
                                bits += 2
                                names = np.full(np.int64(1) << bits, _EMPTY, np.int64)
                                numbers = np.empty(np.int64(1) << bits, np.int32)
                                longer = np.empty(np.int64(1) << (bits - 1), np.int64)
                                for n in range(count):
                                    longer[n] = order[n]
                                    _insert(names, numbers, bits, order[n], np.int64(n))
                                order = longer
                        previous_names[k] = name
                        previous[k] = number
                    vertices[pixel, k] = previous[k]
        return order[:count].copy()

    return embed


embed_position = _embedder(2)
embed_position_and_color = _embedder(5)


@kernel
def merge_names(band, names, numbers, bits, order, count, places):  # type: ignore[no-untyped-def]
    """Enter a band's vertices into the image's table; their places there; the number of vertices so far."""
    for n in range(band.size):
        number = _insert(names, numbers, bits, band[n], count)
        if number == count:
            order[count] = band[n]
            count += 1
        places[n] = number
    return count


@kernel
def find_neighbours(order, names, numbers, bits, steps, first, last, neighbours):  # type: ignore[no-untyped-def]
    """Fill ``neighbours`` (d+1, M, 2) for vertices [first, last): the next vertex, and its way back.

    Ranges may be filled at the same time: every entry has one writer.
    """
    missing = np.int64(order.size)
    for n in range(first, last):
        for axis in range(steps.size):
            other = _find(names, numbers, bits, order[n] + steps[axis], missing)
            if other != missing:
                neighbours[axis, n, 0] = other
                neighbours[axis, other, 1] = n


@kernel
def blur_axis(neighbours, source, target, first, last):  # type: ignore[no-untyped-def]
    """[1/2 1 1/2] along one axis for vertices [first, last); row M of ``source`` is zero: no such vertex."""
    half = np.float32(0.5)
    for n in range(first, last):
        before = np.uint32(neighbours[n, 0])
        after = np.uint32(neighbours[n, 1])
        for c in range(0, source.shape[1], 4):
            a = source[n, c] + half * (source[before, c] + source[after, c])
            b = source[n, c + 1] + half * (source[before, c + 1] + source[after, c + 1])
            d = source[n, c + 2] + half * (source[before, c + 2] + source[after, c + 2])
            e = source[n, c + 3] + half * (source[before, c + 3] + source[after, c + 3])
            target[n, c] = a
            target[n, c + 1] = b
            target[n, c + 2] = d
            target[n, c + 3] = e


@kernel
def add_band(places, sums, target):  # type: ignore[no-untyped-def]
    """Add a band's sums to the image's vertices."""
    for n in range(places.size):
        place = np.uint32(places[n])
        for c in range(target.shape[1]):
            target[place, c] += sums[n, c]


@kernel
def take_band(places, source, values):  # type: ignore[no-untyped-def]
    """Copy the values of a band's vertices, so that its slice reads them close together."""
    for n in range(places.size):
        place = np.uint32(places[n])
        for c in range(source.shape[1]):
            values[n, c] = source[place, c]


@kernel
def splat_ones(vertices, weights, sums):  # type: ignore[no-untyped-def]
    """Sum of the weights of every vertex, into lane 0."""
    for pixel in range(vertices.shape[0]):
        for k in range(vertices.shape[1]):
            sums[np.uint32(vertices[pixel, k]), 0] += weights[pixel, k]


@kernel
def normalise_weights(vertices, weights, values, gain):  # type: ignore[no-untyped-def]
    """Scale each pixel's weights by sqrt(gain / (filter of ones)), which makes the filter symmetric.

    Splat and slice both carry the factor: splatting and slicing with these weights applies
    ``gain * n * K * n`` with n = 1/sqrt(K 1).
    """
    for pixel in range(vertices.shape[0]):
        total = np.float32(0)
        for k in range(vertices.shape[1]):
            total += weights[pixel, k] * values[np.uint32(vertices[pixel, k]), 0]
        factor = np.sqrt(gain / (total + np.float32(1e-20)))
        for k in range(vertices.shape[1]):
            weights[pixel, k] *= factor
