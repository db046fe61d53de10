"""Triton kernel: steps of a random walk, many a launch where one program holds a plane, else one."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsss_rt.kernels._launch import wrap_triton
from wsss_rt.kernels.random_walk.transitions import Transitions, pair_offsets

#: Cells up to which one program walks a plane to its end. A guess until a GPU has timed both forms: a step of
#: one program takes as long as the plane is large, and that of a launch at least as long as a launch.
ALONE = 8192
_LARGEST_BLOCK = 1024


@triton.jit
def _advance(
    before,
    after,
    weights,
    shifts,
    share,
    start,
    cells,
    planes,
    kinds,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):
    """One step of some cells of some planes, which share their weights."""
    cell = start + tl.arange(0, BLOCK)
    lanes = tl.arange(0, LANES)
    there = cell < cells
    own = there[:, None] & (lanes < planes)[None, :]
    place = lanes[None, :].to(tl.int64) * cells + cell[:, None]
    value = tl.load(before + place, mask=own, other=0.0)
    change = tl.zeros((BLOCK, LANES), tl.float32)
    for kind in tl.range(0, kinds, loop_unroll_factor=2):
        shift = tl.load(shifts + kind)
        further = there & (cell + shift < cells)
        back = there & (cell >= shift)
        outward = tl.load(weights + cell, mask=further, other=0.0)
        inward = tl.load(weights + cell - shift, mask=back, other=0.0)
        ahead = tl.load(before + place + shift, mask=own & further[:, None], other=0.0)
        behind = tl.load(before + place - shift, mask=own & back[:, None], other=0.0)
        change += outward[:, None] * (ahead - value) + inward[:, None] * (behind - value)
        weights += cells
    value += change * tl.load(share + cell, mask=there, other=0.0)[:, None]
    tl.store(after + place, value, mask=own)


@triton.jit
def _walk(
    before, after, weights, shifts, share,
    blocks, groups, cells, classes, kinds, steps,
    BLOCK: tl.constexpr, LANES: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    """Each program one step of one block of cells, or, ALONE, all steps of all cells of its planes."""
    program = tl.program_id(0).to(tl.int64)
    image = program // (groups * blocks)
    first = program // blocks % groups * LANES
    planes = tl.minimum(classes - first, LANES)
    before += (image * classes + first) * cells
    after += (image * classes + first) * cells
    weights += image * kinds * cells
    share += image * cells
    if ALONE:
        for _ in range(0, steps):
            for start in range(0, cells, BLOCK):
                _advance(before, after, weights, shifts, share, start, cells, planes, kinds, BLOCK, LANES)
            # every cell has been written before any is read
            tl.debug_barrier()
            before, after = after, before
    else:
        start = (program % blocks).to(tl.int32) * BLOCK
        _advance(before, after, weights, shifts, share, start, cells, planes, kinds, BLOCK, LANES)


def launches(cells: int, steps: int) -> str:
    """What a call launches."""
    return f"walk of {steps}" if cells <= ALONE else f"{steps}x step"


def launch(values: Tensor, weights: Tensor, shifts: list[int], share: Tensor, steps: int) -> Tensor:
    """Values (B, C, n) after some steps by transitions of these fields."""
    batch, classes, cells = values.shape
    front, back = (
        values.clone(memory_format=torch.contiguous_format),
        torch.empty(values.shape, device=values.device),
    )
    if not values.numel() or not steps:
        return front
    weights, share = weights.contiguous(), share.contiguous()
    offsets = torch.tensor(shifts, dtype=torch.int32, device=values.device)
    alone = cells <= ALONE
    # planes of one image share their weights where all programs of a step run side by side
    lanes = 1 if alone else min(4, triton.next_power_of_2(classes))
    block = min(_LARGEST_BLOCK if alone else 256, triton.next_power_of_2(cells))
    blocks, groups = 1 if alone else triton.cdiv(cells, block), triton.cdiv(classes, lanes)
    for _ in range(1 if alone else steps):
        wrap_triton(_walk)[(batch * groups * blocks,)](
            front, back, weights, offsets, share,
            blocks, groups, cells, classes, len(shifts), steps,
            BLOCK=block, LANES=lanes, ALONE=alone, num_warps=16 if alone else 4,
        )  # fmt: skip
        front, back = back, front
    return front if not alone or steps % 2 else back


_random_walk = torch.library.triton_op("wsss_rt::random_walk", mutates_args=())(launch)


def walk(values: Tensor, by: Transitions, steps: int) -> Tensor:
    """As the reference."""
    found: Tensor = _random_walk(values, by.weights, by.shifts, by.share, steps)
    return found


@_random_walk.register_fake
def _(values: Tensor, weights: Tensor, shifts: list[int], share: Tensor, steps: int) -> Tensor:
    return torch.empty(values.shape, dtype=values.dtype, device=values.device)


def _example(rows: int, columns: int, classes: int) -> Callable[[], Tensor]:
    def call() -> Tensor:
        cells, shifts = rows * columns, [dy * columns + dx for dy, dx in pair_offsets(5)]
        values, weights, share = (
            torch.empty(shape, device="meta")
            for shape in ((4, classes, cells), (4, len(shifts), cells), (4, cells))
        )
        return launch(values, weights, shifts, share, 2)

    return call


#: Calls as they come, for a compiler without a GPU.
EXAMPLES: dict[str, Callable[[], Tensor]] = {
    "500x375 px": _example(47, 63, 3),
    "1600x1200 px, background and a class": _example(150, 200, 2),
    "1600x1200 px, 21 classes": _example(150, 200, 21),
}
