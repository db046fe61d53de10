"""How much of a device's memory a CRF takes, counted from the tensors of this folder."""

from __future__ import annotations

# while the lattice is built: names, ranks and weights of corners, and their order; see `lattice.py`
_BUILT_PIXEL, _BUILT_VERTEX, _BUILT_VALUE = 350, 366, 8
# nine corners with vertex, weight and number
_LATTICE_PIXEL = 9 * 12
# two neighbours along six axes, and where its pieces begin
_LATTICE_VERTEX = 6 * 2 * 4 + 8
# PyTorch's mean field gathers and scatters rows in copies
_REFERENCE_PIXEL, _REFERENCE_VERTEX = 161, 89
_REFERENCE_VALUE, _REFERENCE_GRID = 18, 10


def crf_bytes(pixels: int, classes: int, *, vertices: int = 0, kernels: bool) -> int:
    """Bytes that a call of ``dense_crf_each`` takes at its peak, its input and output among them.

    Counted in PyTorch's allocations, to about a tenth.

    Args:
        pixels: of all images.
        classes: of the image with the most, background among them.
        vertices: of both lattices; 0 where they are not known yet, and then this is a lower bound.
            Photographs have about one for five pixels.
        kernels: whether the Triton kernels run, or the reference.
    """
    building = pixels * (_BUILT_PIXEL + _BUILT_VALUE * classes) + vertices * _BUILT_VERTEX
    # the log-probabilities stay
    running = pixels * (_LATTICE_PIXEL + 4 * classes) + vertices * _LATTICE_VERTEX
    if kernels:
        # marginals as rows and as planes; two grids, and the pieces that vertices are summed from
        row = 4 * 4 * -(-classes // 4)
        running += pixels * (row + 4 * classes) + 3 * vertices * row
    else:
        running += pixels * (_REFERENCE_PIXEL + _REFERENCE_VALUE * classes)
        running += vertices * (_REFERENCE_VERTEX + _REFERENCE_GRID * classes)
    return max(building, running) + pixels * (3 + 4 * classes)
