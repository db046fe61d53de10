"""A permutohedral lattice over the pixels of an image: Gaussian filtering in position and colour.

The pixels are cut into bands of rows by the image's size alone. Each band has vertices of its own, which
one thread fills without locks; the bands' sums are added up in a fixed order. So the result does not depend
on the number of threads, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wsss_rt.errors import WsssError
from wsss_rt.refine import lattice_kernels as kernels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.crew import Crew

# pixels of a band, at least; and the most bands
BAND_PIXELS = 32_768
MAX_BANDS = 16
# vertices from which on a blur is worth handing out to threads
SHARED_BLUR = 65_536
# places of a band's first table, as a power of two
_FIRST_BITS = 15
# one below the sign bit of a vertex's name
_NAME_LIMIT = 2**62


@dataclass(frozen=True)
class Band:
    """Consecutive rows of the image.

    Attributes:
        pixels: their range among all pixels.
        places: (vertices of the band,) int32, where each stands among the vertices of the image.
    """

    pixels: slice
    places: NDArray[np.int32]


@dataclass(frozen=True)
class Lattice:
    """The geometry of a filter; not changed once built, so that threads may share it.

    Attributes:
        vertices: (N, d + 1) int32, the corners of each pixel's simplex, counted within its band.
        weights: (N, d + 1) float32, with the symmetric normalisation and the kernel's strength in them.
        neighbours: (d + 1, M, 2) int32, along each axis; M where there is none.
        bands: in order.
    """

    vertices: NDArray[np.int32]
    weights: NDArray[np.float32]
    neighbours: NDArray[np.int32]
    bands: tuple[Band, ...]

    @property
    def size(self) -> int:
        """Number of vertices."""
        return self.neighbours.shape[1]

    @property
    def copies(self) -> int:
        """Number of vertices, those that several bands have counted in each."""
        return sum(len(band.places) for band in self.bands)


def band_rows(height: int, width: int) -> list[tuple[int, int]]:
    """First and last (exclusive) row of each band: a power of two of them, which 2^n threads share alike."""
    count = 1
    while count < MAX_BANDS and height * width >= 2 * count * BAND_PIXELS:
        count *= 2
    count = min(count, height)
    edges = [height * index // count for index in range(count + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def build_lattice(
    image: NDArray[np.uint8], deviations: Sequence[float], *, strength: float, crew: Crew
) -> Lattice:
    """The lattice of a Gaussian kernel of these standard deviations.

    Args:
        image: (H, W, 3) uint8; only its size matters where there are two deviations.
        deviations: of x and y in pixels, and, for a bilateral kernel, of r, g, b in levels; each > 0.
        strength: factor of the filter, >= 0.
        crew: who builds it.

    Raises:
        WsssError: the deviations are so small for this image that its vertices cannot be told apart.
    """
    height, width = image.shape[:2]
    dimensions = len(deviations)
    corners = dimensions + 1
    scale, radix, origin, steps = _names(height, width, deviations)
    pixels = height * width
    vertices = np.empty((pixels, corners), np.int32)
    weights = np.empty((pixels, corners), np.float32)
    rows = band_rows(height, width)

    def place(first: int, last: int) -> NDArray[np.int64]:
        return _place_band(image, slice(first * width, last * width), geometry, vertices, weights)

    geometry = (scale, radix, origin)
    named = crew.run(place, rows)
    most = sum(len(names) for names in named)
    bits = max(4, (2 * most).bit_length())
    table = np.full(1 << bits, -1, np.int64)
    numbers = np.empty(1 << bits, np.int32)
    order = np.empty(most, np.int64)
    count, bands = 0, []
    for (first, last), names in zip(rows, named, strict=True):
        places = np.empty(len(names), np.int32)
        count = int(kernels.merge_names(names, table, numbers, bits, order, count, places))
        bands.append(Band(slice(first * width, last * width), places))
    order = order[:count].copy()
    neighbours = np.full((corners, count, 2), count, np.int32)
    crew.run(
        kernels.find_neighbours,
        [(order, table, numbers, bits, steps, *part, neighbours) for part in _parts(count, crew)],
    )
    lattice = Lattice(vertices, weights, neighbours, tuple(bands))
    _normalise(lattice, strength, crew)
    return lattice


def _place_band(
    image: NDArray[np.uint8],
    pixels: slice,
    geometry: tuple[NDArray[np.float32], NDArray[np.int64], int],
    vertices: NDArray[np.int32],
    weights: NDArray[np.float32],
) -> NDArray[np.int64]:
    """Fill a band's corners and weights; returns the names of its vertices."""
    embed = kernels.embed_position if vertices.shape[1] == 3 else kernels.embed_position_and_color
    bits, count, done = _FIRST_BITS, 0, pixels.start
    names, numbers, order = _table(bits)
    while True:
        done, count = embed(
            image, done, pixels.stop, *geometry, names, numbers, bits, order, count, vertices, weights
        )
        if done == pixels.stop:
            return order[:count].copy()
        bits += 2
        names, numbers, longer = _table(bits)
        kernels.merge_names(order[:count], names, numbers, bits, longer, 0, np.empty(count, np.int32))
        order = longer


def _table(bits: int) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """An empty table of vertices: names, their numbers, and names by number, for a quarter of its places."""
    places = 1 << bits
    return np.full(places, -1, np.int64), np.empty(places, np.int32), np.empty(places // 4, np.int64)


def _names(
    height: int, width: int, deviations: Sequence[float]
) -> tuple[NDArray[np.float32], NDArray[np.int64], int, NDArray[np.int64]]:
    """Scale of each feature, radix of each coordinate, name of the origin, and step along each axis."""
    dimensions = len(deviations)
    corners = dimensions + 1
    # the blur's own variance decides how wide a unit of the lattice is (Adams et al., section 3.1)
    unit = math.sqrt(2 / 3) * corners
    scale = [unit / math.sqrt((i + 1) * (i + 2)) / deviations[i] for i in range(dimensions)]
    largest = [s * (most - 1) for s, most in zip(scale, (width, height, 256, 256, 256), strict=False)]
    margin = 3 * corners
    radix, origin, product = [], 0, 1
    for i in range(dimensions):
        low = -i * largest[i - 1] if i else 0.0
        start = math.floor(low) - margin
        radix.append(product)
        origin -= start * product
        product *= math.ceil(sum(largest[i:])) + margin - start + 1
    if product >= _NAME_LIMIT:
        raise WsssError(
            f"a kernel with deviations {', '.join(f'{value:g}' for value in deviations)} is too narrow "
            f"for an image of {width}x{height} px",
            fix="use larger ones",
            code="narrow_kernel",
        )
    total = sum(radix)
    steps = [corners * value - total for value in radix] + [-total]
    return np.array(scale, np.float32), np.array(radix, np.int64), origin, np.array(steps, np.int64)


class Field:
    """Values on a lattice's vertices, and the memory to blur them; one per filter at work.

    Args:
        lattice: whose vertices.
        lanes: values per vertex, a multiple of four.

    Attributes:
        values: per band (lanes / 4, vertices, 4) float32, flat, what a slice reads.
        sums: the same, what a splat adds to.
    """

    def __init__(self, lattice: Lattice, lanes: int) -> None:
        self.lattice = lattice
        self.values = [np.zeros(len(band.places) * lanes, np.float32) for band in lattice.bands]
        self.sums = [np.zeros_like(values) for values in self.values]
        # the last vertex of a slab stands for every vertex that is not there
        self._slab = 4 * (lattice.size + 1)
        self._front = np.zeros(self._slab * lanes // 4, np.float32)
        self._back = np.zeros_like(self._front)

    def blur(self, crew: Crew) -> None:
        """Add up the bands' sums and blur them along every axis."""
        self._front.fill(0)
        for band, sums in zip(self.lattice.bands, self.sums, strict=True):
            kernels.add_band(band.places, sums, self._front, self._slab)
        for neighbours in self.lattice.neighbours:
            crew.run(
                kernels.blur_axis,
                [
                    (neighbours, self._front, self._back, self._slab, *part)
                    for part in _parts(self.lattice.size, crew)
                ],
            )
            self._front, self._back = self._back, self._front

    def hand_out(self, index: int) -> None:
        """Give a band its blurred values, and empty its sums."""
        kernels.take_band(self.lattice.bands[index].places, self._front, self._slab, self.values[index])
        self.sums[index].fill(0)


def _normalise(lattice: Lattice, strength: float, crew: Crew) -> None:
    field = Field(lattice, 4)

    def splat(index: int) -> None:
        pixels = lattice.bands[index].pixels
        kernels.splat_ones(lattice.vertices[pixels], lattice.weights[pixels], field.sums[index])

    def scale(index: int) -> None:
        field.hand_out(index)
        pixels = lattice.bands[index].pixels
        kernels.normalise_weights(
            lattice.vertices[pixels], lattice.weights[pixels], field.values[index], np.float32(strength)
        )

    every = [(index,) for index in range(len(lattice.bands))]
    crew.run(splat, every)
    field.blur(crew)
    crew.run(scale, every)


def _parts(size: int, crew: Crew) -> list[tuple[int, int]]:
    """Ranges of vertices, one per thread where there are enough of them."""
    count = crew.threads if size >= SHARED_BLUR else 1
    return [(size * part // count, size * (part + 1) // count) for part in range(count)]
