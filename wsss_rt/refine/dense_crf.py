"""The fully connected CRF of Krähenbühl and Koltun (2011): marginals that follow the image's edges.

Mean field over all pairs of pixels with two Gaussian kernels, one in position and one in position and colour,
filtered in a permutohedral lattice. Semantics and defaults are those of the package pydensecrf: unary
-log(clip(p, 1e-5, 1)), Potts compatibility, symmetric normalisation, diagonal kernels, a parallel update.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from wsss_rt.crew import Crew
from wsss_rt.refine import mean_field_kernels as kernels
from wsss_rt.refine.checks import check_input
from wsss_rt.refine.lattice import Field, Lattice, build_lattice
from wsss_rt.refine.memory import LANES, refuse_beyond
from wsss_rt.refine.params import LEAST_PROBABILITY, CrfParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

# a lane without a class; far below every energy, and still exact to add to
_ABSENT = np.float32(-1e4)
# positions' lattices that are kept, and pixels from which on one is too large to keep
KEPT_LATTICES = 4
KEPT_PIXELS = 1_000_000


def dense_crf(
    image_u8: NDArray[np.uint8],
    probabilities: NDArray[np.float32],
    params: CrfParams | None = None,
    *,
    threads: int = 1,
    memory_limit: float | None = None,
) -> NDArray[np.float32]:
    """Marginals of the fully connected CRF after some steps of mean field.

    Args:
        image_u8: (H, W, 3) uint8 RGB, contiguous or not.
        probabilities: (C, H, W) floating point, C >= 1, finite; clipped to 1e-5..1, and need not sum to 1.
        params: kernels and number of steps; None takes the defaults.
        threads: how many work on the image; the result does not depend on it.
        memory_limit: bytes beyond which an image is refused; None refuses none.

    Returns:
        (C, H, W) float32 in 0..1, which sum to 1 over C.

    Raises:
        ImageError: ``nonfinite_output``: the probabilities hold NaN or infinity; ``out_of_memory``: the
            image needs more than the limit.
        ValueError: arrays of other shapes or types.
        WsssError: a kernel too narrow for an image of this size.

    Releases the interpreter lock, and may be called from several threads at once.
    """
    return dense_crf_each(image_u8, [probabilities], params, threads=threads, memory_limit=memory_limit)[0]


def dense_crf_each(
    image_u8: NDArray[np.uint8],
    several: Sequence[NDArray[np.float32]],
    params: CrfParams | None = None,
    *,
    threads: int = 1,
    memory_limit: float | None = None,
) -> list[NDArray[np.float32]]:
    """:func:`dense_crf` of several probabilities on one image, whose lattices are built once."""
    chosen = params or CrfParams()
    for probabilities in several:
        check_input(image_u8, probabilities)
    classes = max(len(probabilities) for probabilities in several)
    if classes == 1:
        return [np.ones(probabilities.shape, np.float32) for probabilities in several]
    # a view that is always read-only: numba would compile anew for the other kind
    image = np.ascontiguousarray(image_u8).view()
    image.flags.writeable = False
    refuse_beyond(memory_limit, image.shape[:2], classes, vertices=0)
    found = []
    with Crew(max(1, threads)) as crew:
        near = _position_lattice(image, chosen, crew)
        deviations = (*(chosen.bilateral_sxy,) * 2, *(chosen.bilateral_srgb,) * 3)
        alike = build_lattice(image, deviations, strength=chosen.bilateral_compat, crew=crew)
        refuse_beyond(memory_limit, image.shape[:2], classes, vertices=near.copies + alike.copies)
        for probabilities in several:
            marginals = np.empty((len(probabilities), image.shape[0] * image.shape[1]), np.float32)
            planes = probabilities.reshape(len(probabilities), -1)
            _MeanField(planes, near, alike, marginals).run(chosen.iterations, crew, stop=chosen.stop)
            found.append(marginals.reshape(probabilities.shape))
    return found


class _MeanField:
    """The state of one image: log-probabilities and two filters."""

    def __init__(
        self,
        planes: NDArray[np.float32],
        near: Lattice,
        alike: Lattice,
        marginals: NDArray[np.float32],
    ) -> None:
        self.planes, self.marginals = planes, marginals
        self.lanes = -(-len(planes) // LANES) * LANES
        self.log_p = np.empty((planes.shape[1], self.lanes), np.float32)
        self.labels = np.empty(0, np.int32)
        self.near, self.alike = Field(near, self.lanes), Field(alike, self.lanes)

    def run(self, iterations: int, crew: Crew, *, stop: float) -> None:
        """``iterations`` steps, or one more after a step that changed at most ``stop`` of the labels."""
        pixels = self.planes.shape[1]
        if stop > 0:
            self.labels = np.zeros(pixels, np.int32)
        count = len(self.alike.lattice.bands)
        first = kernels.FIRST if iterations else kernels.LAST
        crew.run(self._begin, [(index, first) for index in range(count)])
        left = iterations
        while left > 0:
            self.near.blur(crew)
            self.alike.blur(crew)
            stage = kernels.LAST if left == 1 else kernels.MIDDLE
            changed = sum(crew.run(self._pass, [(index, stage) for index in range(count)]))
            left = 1 if left > 2 and stop > 0 and changed <= stop * pixels else left - 1

    def _begin(self, index: int, stage: int) -> int:
        self._take_unary(self.alike.lattice.bands[index].pixels)
        return self._update(index, stage)

    def _pass(self, index: int, stage: int) -> int:
        self.near.hand_out(index)
        self.alike.hand_out(index)
        return self._update(index, stage)

    def _update(self, index: int, stage: int) -> int:
        near, alike = self.near.lattice, self.alike.lattice
        pixels = alike.bands[index].pixels
        changed: int = kernels.update_pixels(
            stage,
            self.log_p[pixels],
            near.vertices[pixels].reshape(-1),
            near.weights[pixels].reshape(-1),
            self.near.values[index],
            self.near.sums[index],
            alike.vertices[pixels].reshape(-1),
            alike.weights[pixels].reshape(-1),
            self.alike.values[index],
            self.alike.sums[index],
            self.labels[pixels],
            self.marginals,
            pixels.start,
        )
        return changed

    def _take_unary(self, pixels: slice) -> None:
        log_p = self.log_p[pixels]
        for lane, plane in enumerate(self.planes):
            clipped = np.clip(plane[pixels], LEAST_PROBABILITY, 1, dtype=np.float32)
            np.log(clipped, out=clipped)
            log_p[:, lane] = clipped
        log_p[:, len(self.planes) :] = _ABSENT


# the lattice of positions depends on nothing but the image's size
_kept: OrderedDict[tuple[int, int, float, float], Lattice] = OrderedDict()
_kept_lock = threading.Lock()


def _position_lattice(image: NDArray[np.uint8], params: CrfParams, crew: Crew) -> Lattice:
    height, width = image.shape[:2]
    key = (height, width, params.spatial_sxy, params.spatial_compat)
    with _kept_lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    deviations = (params.spatial_sxy, params.spatial_sxy)
    lattice = build_lattice(image, deviations, strength=params.spatial_compat, crew=crew)
    if height * width <= KEPT_PIXELS:
        with _kept_lock:
            _kept[key] = lattice
            while len(_kept) > KEPT_LATTICES:
                _kept.popitem(last=False)
    return lattice
