"""Inner loops of the permutohedral lattice (Adams, Baek and Davis, 2010).

A d-dimensional feature is lifted to the hyperplane of d+1 coordinates whose sum is zero. The vertices of the
lattice there have integer coordinates that are all equal modulo d+1; a point lies in a simplex of d+1
vertices and is written as their barycentric mixture. Filtering is splat (pixels to vertices), blur with
[1/2 1 1/2] along each of the d+1 lattice directions, and slice (vertices to pixels).

A vertex is named by one integer: its first d coordinates in a mixed radix. The name is linear in the
coordinates, so that a step along the lattice adds a constant to it, and no coordinates need to be stored.

Values lie as flat (slabs, vertices, 4) float32: a slab for every four classes, so that the four lanes of a
vertex are one load, at a place that needs no multiplication.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from wsss_rt.jit import kernel
from wsss_rt.refine.lanes import add_scaled, load, store

# odd, about 2^64 over the golden ratio: the top bits of a product with it depend on every bit of the name
_MIX = np.int64(-7046029254386353131)
_EMPTY = np.int64(-1)
# indices are unsigned: for signed ones numba adds a test for negative ones
_0 = np.uint64(0)
_LANES = np.uint64(4)
# pixels that are placed together
_CHUNK = 64


@kernel
def _slot(name, bits):  # type: ignore[no-untyped-def]
    return np.int64(np.uint64(name * _MIX) >> np.uint64(64 - bits))


# the same probing stands in both look-ups on purpose: numba counts references around a helper that they would
# share, and building a lattice then took more than twice as long
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
    def embed(  # type: ignore[no-untyped-def]
        image, first, last, scale, radix, origin, names, numbers, bits, order, count, vertices, weights
    ):
        """Place pixels [first, last) in the lattice of their band, which has ``count`` vertices so far.

        Returns the pixel before which it stopped, because ``order`` might not hold the next ones, and the
        number of vertices. The table comes from outside: numba counts references around every call where
        a kernel makes its own, and that takes longer than all the rest.
        """
        width = image.shape[1]
        # features lie in rows of one chunk of pixels, for wide vectors; the last chunk computes what nobody
        # reads, because loops of a constant length are a fraction of the code
        scaled = np.zeros((dimensions, _CHUNK), np.float32)
        lifted = np.empty((corners, _CHUNK), np.float32)
        offset = np.empty((corners, _CHUNK), np.float32)
        coordinate = np.empty((corners, _CHUNK), np.int32)
        rank = np.empty((corners, _CHUNK), np.int32)
        total = np.empty(_CHUNK, np.float32)
        excess = np.empty(_CHUNK, np.int32)
        sorted_offset = np.empty(corners, np.float32)
        sorted_jump = np.empty(corners, np.int64)
        jump = np.zeros(corners, np.int64)
        all_radix = np.int64(0)
        for i in range(dimensions):
            jump[i] = corners * radix[i]
            all_radix += radix[i]
        for start in range(first, last, _CHUNK):
            if count + _CHUNK * corners > order.size:
                return start, count
            size = min(_CHUNK, last - start)
            x, y = start % width, start // width
            for t in range(size):
                scaled[0, t] = np.float32(x) * scale[0]
                scaled[1, t] = np.float32(y) * scale[1]
                if dimensions == 5:
                    scaled[2, t] = np.float32(image[y, x, 0]) * scale[2]
                    scaled[3, t] = np.float32(image[y, x, 1]) * scale[3]
                    scaled[4, t] = np.float32(image[y, x, 2]) * scale[4]
                x += 1
                if x == width:
                    x, y = 0, y + 1
            # lift: the rows of the triangular basis of the plane
            for t in range(_CHUNK):
                total[t] = np.float32(0)
                excess[t] = 0
            for i in range(dimensions, 0, -1):
                for t in range(_CHUNK):
                    lifted[i, t] = total[t] - np.float32(i) * scaled[i - 1, t]
                    total[t] += scaled[i - 1, t]
            for t in range(_CHUNK):
                lifted[0, t] = total[t]
            # the nearest point with multiples of d+1 as coordinates, and by how far their sum misses 0
            for i in range(corners):
                for t in range(_CHUNK):
                    nearest = np.rint(lifted[i, t] * inverse)
                    excess[t] += np.int32(nearest)
                    coordinate[i, t] = np.int32(nearest * step)
                    # unscaled: rounding must not make up or break a tie, which decides what vertices exist
                    offset[i, t] = lifted[i, t] - nearest * step
            # how many offsets are larger; ties go to the earlier coordinate
            for i in range(corners):
                for t in range(_CHUNK):
                    rank[i, t] = excess[t]
            for i in range(corners):
                for j in range(i + 1, corners):
                    for t in range(_CHUNK):
                        later = np.int32(offset[j, t] > offset[i, t])
                        rank[i, t] += later
                        rank[j, t] += np.int32(1) - later
            for i in range(corners):
                for t in range(_CHUNK):
                    if rank[i, t] < 0:
                        rank[i, t] += np.int32(corners)
                        coordinate[i, t] += np.int32(corners)
                    elif rank[i, t] > dimensions:
                        rank[i, t] -= np.int32(corners)
                        coordinate[i, t] -= np.int32(corners)
                    offset[i, t] = (lifted[i, t] - np.float32(coordinate[i, t])) * inverse
            for t in range(size):
                name = origin
                for i in range(corners):
                    at = np.uint32(rank[i, t])
                    sorted_offset[at] = offset[i, t]
                    sorted_jump[at] = jump[i]
                for i in range(dimensions):
                    name += np.int64(coordinate[i, t]) * radix[i]
                for k in range(corners):
                    if k == 0:
                        weight = np.float32(1) + sorted_offset[dimensions] - sorted_offset[0]
                    else:
                        weight = sorted_offset[dimensions - k] - sorted_offset[corners - k]
                        # to the next corner of the simplex
                        name += all_radix - sorted_jump[corners - k]
                    weights[start + t, k] = weight
                    number = _insert(names, numbers, bits, name, count)
                    vertices[start + t, k] = number
                    if number == count:
                        order[count] = name
                        count += 1
        return last, count

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
def blur_axis(neighbours, source, target, slab, first, last):  # type: ignore[no-untyped-def]
    """[1/2 1 1/2] along one axis for vertices [first, last) of every slab; flat but for ``neighbours``.

    The last vertex of a slab of ``source`` is zero: it stands for every vertex that is not there.
    """
    half = np.float32(0.5)
    for base in range(_0, np.uint64(source.size), np.uint64(slab)):
        for n in range(first, last):
            before = load(source, base + _LANES * np.uint64(neighbours[n, 0]))
            after = load(source, base + _LANES * np.uint64(neighbours[n, 1]))
            at = base + _LANES * np.uint64(n)
            store(target, at, add_scaled(add_scaled(load(source, at), half, before), half, after))


@kernel
def add_band(places, sums, target, slab):  # type: ignore[no-untyped-def]
    """Add a band's sums to the image's vertices."""
    own = np.uint64(0)
    for base in range(_0, np.uint64(target.size), np.uint64(slab)):
        for n in range(places.size):
            at = base + _LANES * np.uint64(places[n])
            store(target, at, add_scaled(load(target, at), np.float32(1), load(sums, own)))
            own += _LANES


@kernel
def take_band(places, source, slab, values):  # type: ignore[no-untyped-def]
    """Copy the values of a band's vertices, so that its slice reads them close together."""
    own = np.uint64(0)
    for base in range(_0, np.uint64(source.size), np.uint64(slab)):
        for n in range(places.size):
            store(values, own, load(source, base + _LANES * np.uint64(places[n])))
            own += _LANES


@kernel
def splat_ones(vertices, weights, sums):  # type: ignore[no-untyped-def]
    """Sum of the weights of every vertex, into lane 0."""
    for pixel in range(vertices.shape[0]):
        for k in range(vertices.shape[1]):
            sums[_LANES * np.uint64(vertices[pixel, k])] += weights[pixel, k]


@kernel
def normalise_weights(vertices, weights, values, gain):  # type: ignore[no-untyped-def]
    """Scale each pixel's weights by sqrt(gain / (filter of ones)), which makes the filter symmetric.

    Splat and slice both carry the factor: splatting and slicing with these weights applies
    ``gain * n * K * n`` with n = 1/sqrt(K 1).
    """
    for pixel in range(vertices.shape[0]):
        total = np.float32(0)
        for k in range(vertices.shape[1]):
            total += weights[pixel, k] * values[_LANES * np.uint64(vertices[pixel, k])]
        factor = np.sqrt(gain / (total + np.float32(1e-20)))
        for k in range(vertices.shape[1]):
            weights[pixel, k] *= factor
