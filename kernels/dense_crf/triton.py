"""Triton kernels: sums over sorted corners, blur, and slice, softmax and best class in one pass.

No float is added atomically: every sum has one program and one order, so that results are the same from run
to run. Values lie as rows of a vertex or pixel, all classes side by side.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsss_rt.kernels._launch import wrap_triton
from wsss_rt.kernels.dense_crf.lattice import Lattice

# elements of a program's tile: 16 to each of 128 threads
_TILE = 2048
_WARPS = 4


@triton.jit
def _sum_ranges(
    values, weights, entries, begins, sums, running,
    count, pixels, groups,
    LANES: tl.constexpr, ROWS: tl.constexpr, TAKE: tl.constexpr, SPLAT: tl.constexpr, STOP: tl.constexpr,
):  # fmt: skip
    """Sums over neighbouring ranges: of a piece's weighted pixels where SPLAT, else of a vertex's pieces."""
    program = tl.program_id(0).to(tl.int64)
    if STOP:
        count = tl.where(tl.load(running) > 0, count, 0)
    # a multiple of four, which lets the compiler load four classes at once
    row = groups * 4
    ranges = program * ROWS + tl.arange(0, ROWS)
    lanes = tl.arange(0, LANES)
    begin = tl.load(begins + ranges, mask=ranges < count, other=0)
    end = tl.load(begins + ranges + 1, mask=ranges < count, other=0)
    total = tl.zeros((ROWS, LANES), tl.float32)
    for start in range(0, tl.max(end - begin), TAKE):
        at = begin[:, None] + start + tl.arange(0, TAKE)[None, :]
        there = at < end[:, None]
        if SPLAT:
            corner = tl.load(entries + at, mask=there, other=0)
            weight = tl.load(weights + corner, mask=there, other=0.0)
            at = corner % pixels
        found = tl.load(
            values + at.to(tl.int64)[:, :, None] * row + lanes[None, None, :],
            mask=there[:, :, None] & (lanes < row)[None, None, :],
            other=0.0,
        )
        if SPLAT:
            found = found * weight[:, :, None]
        total += tl.sum(found, 1)
    tl.store(
        sums + ranges[:, None] * row + lanes[None, :],
        total,
        mask=(ranges < count)[:, None] & (lanes < row)[None, :],
    )


@triton.jit
def _blur(
    source, target, before, after, running,
    count, groups,
    LANES: tl.constexpr, ROWS: tl.constexpr, STOP: tl.constexpr,
):  # fmt: skip
    """[1/2 1 1/2] along one axis."""
    program = tl.program_id(0).to(tl.int64)
    if STOP:
        count = tl.where(tl.load(running) > 0, count, 0)
    row = groups * 4
    vertices = program * ROWS + tl.arange(0, ROWS)
    lanes = tl.arange(0, LANES)
    own = (vertices < count)[:, None] & (lanes < row)[None, :]
    first = tl.load(before + vertices, mask=vertices < count, other=-1).to(tl.int64)[:, None]
    last = tl.load(after + vertices, mask=vertices < count, other=-1).to(tl.int64)[:, None]
    here = vertices[:, None] * row + lanes[None, :]
    value = tl.load(source + here, mask=own, other=0.0)
    value += 0.5 * tl.load(source + first * row + lanes[None, :], mask=own & (first >= 0), other=0.0)
    value += 0.5 * tl.load(source + last * row + lanes[None, :], mask=own & (last >= 0), other=0.0)
    tl.store(target + here, value, mask=own)


@triton.jit
def _update(
    log_p, vertices, weights, values, q, out, labels, left, changed, firsts,
    blocks, pixels, classes, groups,
    CORNERS: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr, STAGE: tl.constexpr, STOP: tl.constexpr,
):  # fmt: skip
    """Slice, messages, softmax: new marginals, into ``q`` or, in an image's last step, into ``out``.

    STAGE 0 takes the unary alone, 2 is the last one of every image.
    """
    program = tl.program_id(0).to(tl.int64)
    row = groups * 4
    image = program // blocks
    pixel = tl.load(firsts + image) + (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    end = tl.load(firsts + image + 1)
    if STOP:
        remaining = tl.load(left + image)
        end = tl.where(remaining > 0, end, 0)
    lanes = tl.arange(0, LANES)
    there = pixel < end
    own = there[:, None] & (lanes < classes)[None, :]
    # lanes without a class get the probability zero
    padded = there[:, None] & (lanes < row)[None, :]
    plane = lanes[None, :].to(tl.int64) * pixels + pixel[:, None]
    energy = tl.load(log_p + plane, mask=own, other=float("-inf"))
    if STAGE > 0:
        for _ in tl.static_range(CORNERS):
            weight = tl.load(weights + pixel, mask=there, other=0.0)
            vertex = tl.load(vertices + pixel, mask=there, other=0).to(tl.int64)
            found = tl.load(values + vertex[:, None] * row + lanes[None, :], mask=padded, other=0.0)
            energy += weight[:, None] * found
            weights += pixels
            vertices += pixels
    # rows beyond the image have no energy, and must not become NaN
    energy = tl.where(there[:, None], energy, 0.0)
    top = tl.max(energy, 1)
    if STOP:
        best = tl.argmax(energy, 1, tie_break_left=True)
        known = tl.load(labels + pixel, mask=there, other=0)
        tl.store(labels + pixel, best, mask=there)
        differ = tl.sum(tl.where(there & (best != known), 1, 0), 0)
        # whole numbers: their sum does not depend on the order
        tl.atomic_add(changed + image, differ)
    share = tl.exp(energy - top[:, None])
    share = share / tl.sum(share, 1)[:, None]
    rows = q + pixel[:, None] * row + lanes[None, :]
    if STAGE == 0:
        tl.store(rows, share, mask=padded)
    elif STOP:
        tl.store(rows, share, mask=padded & (remaining > 1))
        tl.store(out + plane, share, mask=own & (remaining == 1))
    elif STAGE == 1:
        tl.store(rows, share, mask=padded)
    else:
        tl.store(out + plane, share, mask=own)


def launches(iterations: int) -> str:
    """What a call launches, beside what builds the lattice."""
    return f"start,{iterations}x(splat,sum,blur6,update)" if iterations else "softmax"


class _Filter:
    """Splat and blur of one lattice for a number of classes, and the memory that they need."""

    def __init__(self, tensors: list[Tensor], classes: int, running: Tensor | None = None) -> None:
        self.lattice, self.running = Lattice(*tensors), running
        # rows begin at a multiple of 16 bytes, so that four classes are one load
        self.groups = -(-classes // 4)
        self.row = 4 * self.groups
        self.lanes = max(4, triton.next_power_of_2(classes))
        count, device = self.lattice.neighbours.shape[2], self.lattice.weights.device
        self.grids = [torch.empty((count, self.row), dtype=torch.float32, device=device) for _ in range(2)]
        self.pieces = torch.empty(
            (len(self.lattice.pieces) - 1, self.row), dtype=torch.float32, device=device
        )

    def blurred(self, q: Tensor) -> Tensor:
        """Values of all vertices (M, row), of those of pixels (P, row)."""
        lattice = self.lattice
        self._sum(q, lattice.pieces, self.pieces, splat=True)
        self._sum(self.pieces, lattice.owners, self.grids[0], splat=False)
        count = len(self.grids[0])
        rows = max(1, _TILE // self.lanes)
        grids = self.grids
        for before, after in lattice.neighbours.unbind(0):
            wrap_triton(_blur)[(triton.cdiv(count, rows),)](
                *grids, before, after, self.running, count, self.groups,
                LANES=self.lanes, ROWS=rows, STOP=self.running is not None, num_warps=_WARPS,
            )  # fmt: skip
            grids = grids[::-1]
        return grids[0]

    def _sum(self, values: Tensor, begins: Tensor, sums: Tensor, *, splat: bool) -> None:
        lattice = self.lattice
        # a vertex has one piece as a rule; indirect loads need registers of their own
        tile, most = (_TILE // 2, 16) if splat else (_TILE, 2)
        take = min(most, max(1, tile // self.lanes))
        rows = max(1, tile // (self.lanes * take))
        wrap_triton(_sum_ranges)[(triton.cdiv(len(sums), rows),)](
            values, lattice.weights, lattice.corners, begins, sums, self.running,
            len(sums), lattice.weights.shape[1], self.groups,
            LANES=self.lanes, ROWS=rows, TAKE=take, SPLAT=splat, STOP=self.running is not None,
            num_warps=_WARPS,
        )  # fmt: skip


def launch_density(lattice: list[Tensor]) -> Tensor:
    """The filter of ones, (P,); a lattice as the list of its tensors."""
    vertices, weights = lattice[:2]
    ones = torch.ones((weights.shape[1], 4), dtype=torch.float32, device=weights.device)
    grid = _Filter(lattice, 1).blurred(ones)[:, 0]
    total = torch.zeros_like(weights[0])
    # not by sum(), whose order depends on the number of pixels
    for corner, weight in zip(vertices, weights, strict=True):
        total += grid[corner.long()] * weight
    return total


def launch(log_p: Tensor, lattice: list[Tensor], sizes: list[int], iterations: int, stop: float) -> Tensor:
    """Marginals (C, P), as the reference's; a lattice as the list of its tensors."""
    if not iterations:
        return log_p.softmax(dim=0)
    classes, pixels = log_p.shape
    device, stops = log_p.device, stop > 0
    counts = torch.tensor(sizes, device=device)
    firsts = torch.nn.functional.pad(counts.cumsum(dim=0), (1, 0))
    left = torch.full_like(counts, iterations, dtype=torch.int32) if stops else None
    changed = torch.zeros_like(left) if left is not None else None
    running = left[:1].clone() if left is not None else None
    labels = torch.zeros(pixels, dtype=torch.int32, device=device) if stops else None
    filtered = _Filter(lattice, classes, running)
    q = torch.empty((pixels, filtered.row), dtype=torch.float32, device=device)
    out = torch.empty_like(log_p)
    block = max(1, _TILE // 2 // filtered.lanes)
    blocks = triton.cdiv(max(sizes), block)
    vertices, weights = lattice[:2]

    def update(stage: int, grid: Tensor) -> None:
        wrap_triton(_update)[(blocks * len(sizes),)](
            log_p, vertices, weights, grid, q, out, labels, left, changed, firsts,
            blocks, pixels, classes, filtered.groups,
            CORNERS=len(vertices), LANES=filtered.lanes, BLOCK=block, STAGE=stage, STOP=stops,
            num_warps=_WARPS,
        )  # fmt: skip

    update(0, q)
    for step in range(iterations):
        if left is not None and changed is not None:
            changed.zero_()
        update(2 if step == iterations - 1 else 1, filtered.blurred(q))
        if left is not None and changed is not None and running is not None:
            # on the device: the host need not wait to know who goes on
            settled = (left > 2) & (changed <= (counts * stop).long())
            left.copy_(torch.where(settled, 1, (left - 1).clamp(min=0)))
            running.copy_(left.amax(dim=0, keepdim=True))
    return out


_density = torch.library.triton_op("wsss_rt::lattice_density", mutates_args=())(launch_density)
_mean_field = torch.library.triton_op("wsss_rt::mean_field", mutates_args=())(launch)


def density(lattice: Lattice) -> Tensor:
    """The filter of ones, (P,) float32."""
    found: Tensor = _density(list(lattice))
    return found


def mean_field(log_p: Tensor, lattice: Lattice, sizes: list[int], iterations: int, stop: float) -> Tensor:
    """As the reference; the end of every image is found on the device."""
    found: Tensor = _mean_field(log_p, list(lattice), sizes, iterations, stop)
    return found


@_density.register_fake
def _(lattice: list[Tensor]) -> Tensor:
    weights = lattice[1]
    return weights.new_empty(weights.shape[1])


@_mean_field.register_fake
def _(log_p: Tensor, lattice: list[Tensor], sizes: list[int], iterations: int, stop: float) -> Tensor:
    return torch.empty_like(log_p)


def _example(classes: int, stop: float = 0.0) -> Callable[[], Tensor]:
    """Sixteen photographs of 500x375 px with a vertex for every fifteen corners."""
    pixels, corners = 16 * 375 * 500, 9
    vertices = pixels * corners // 15
    shapes = ((corners, pixels), (corners, pixels), (6, 2, vertices), (corners * pixels,), (vertices * 2,))

    def call() -> Tensor:
        parts = [torch.empty(shape, dtype=torch.int32, device="meta") for shape in (*shapes, (vertices + 1,))]
        parts[1] = parts[1].float()
        return launch(torch.empty((classes, pixels), device="meta"), parts, [375 * 500] * 16, 2, stop)

    return call


#: Calls as they come, for a compiler without a GPU.
EXAMPLES: dict[str, Callable[[], Tensor]] = {
    "background and a class": _example(2),
    "six classes, early stop": _example(6, 0.01),
    "21 classes": _example(21),
    "21 classes, early stop": _example(21, 0.01),
    "200 classes": _example(200),
}
