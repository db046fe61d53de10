"""Connected regions against a flood fill that visits pixel by pixel."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from wsss_rt.metrics import regions as module
from wsss_rt.metrics.regions import Connectivity, connect, find_regions, level_runs, mask_runs

Region = tuple[tuple[int, int, int, int], int]


def flood(mask: NDArray[np.bool_], connectivity: Connectivity) -> list[Region]:
    """(box, pixels) of every region, by first pixel in reading order."""
    height, width = mask.shape
    left_over = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = []
    for first in sorted(left_over):
        if first not in left_over:
            continue
        left_over.discard(first)
        members, queue = [first], [first]
        while queue:
            y, x = queue.pop()
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    near = (y + dy, x + dx)
                    if near in left_over and (connectivity == 8 or not dy * dx):
                        left_over.discard(near)
                        members.append(near)
                        queue.append(near)
        ys, xs = zip(*members, strict=True)
        found.append(((min(xs), min(ys), max(xs) + 1, max(ys) + 1), len(members)))
    return found


def ours(mask: NDArray[np.bool_], connectivity: Connectivity) -> list[Region]:
    regions = find_regions(mask, connectivity)
    return [
        (tuple(box), pixels)
        for box, pixels in zip(regions.boxes.tolist(), regions.pixels.tolist(), strict=True)
    ]


def random_masks(count: int) -> Iterator[NDArray[np.bool_]]:
    rng = np.random.default_rng(11)
    for _ in range(count):
        height, width = rng.integers(1, 13, 2)
        yield rng.random((height, width)) < rng.choice([0.1, 0.3, 0.5, 0.6, 0.8])


@pytest.mark.parametrize("connectivity", [4, 8])
def test_random_masks_split_as_a_flood_fill_splits_them(connectivity: Connectivity) -> None:
    for mask in random_masks(300):
        assert ours(mask, connectivity) == flood(mask, connectivity), mask.astype(int)


def test_shapes_that_join_late_are_one_region() -> None:
    comb = np.zeros((40, 41), bool)
    comb[:, ::2] = True
    comb[-1] = True
    spiral = np.zeros((41, 41), bool)
    for inset in range(0, 20, 2):
        spiral[inset, inset : 41 - inset] = spiral[40 - inset, inset : 41 - inset] = True
        spiral[inset : 41 - inset, 40 - inset] = spiral[inset + 2 : 41 - inset, inset] = True
        spiral[inset + 2, inset : inset + 3] = True
    diagonal = np.eye(30, dtype=bool)
    for mask in (comb, spiral, diagonal, diagonal[:, ::-1]):
        for connectivity in (4, 8):
            assert ours(mask, connectivity) == flood(mask, connectivity)
    assert len(ours(comb, 4)) == len(ours(diagonal, 8)) == 1
    assert len(ours(diagonal, 4)) == 30


def test_regions_inside_holes_and_at_the_border_have_boxes_of_their_own() -> None:
    mask = np.zeros((9, 9), bool)
    mask[:, :] = True
    mask[1:8, 1:8] = False
    mask[3:6, 3:6] = True
    mask[4, 4] = False
    assert ours(mask, 8) == [((0, 0, 9, 9), 32), ((3, 3, 6, 6), 8)]
    assert ours(~mask, 4) == [((1, 1, 8, 8), 40), ((4, 4, 5, 5), 1)]


def test_nothing_everything_and_one_pixel() -> None:
    assert ours(np.zeros((3, 4), bool), 8) == []
    assert ours(np.ones((3, 4), bool), 8) == [((0, 0, 4, 3), 12)]
    for row, column in ((0, 0), (2, 3), (1, 2)):
        mask = np.zeros((3, 4), bool)
        mask[row, column] = True
        assert ours(mask, 4) == [((column, row, column + 1, row + 1), 1)]


def test_masks_of_a_stack_do_not_touch() -> None:
    stack = np.random.default_rng(4).random((40, 5, 5)) < 0.6
    stack = np.concatenate([stack, np.ones((2, 5, 5), bool), np.zeros((1, 5, 5), bool)])
    regions = connect(mask_runs(stack))
    for index, mask in enumerate(stack):
        chosen = regions.masks == index
        assert regions.boxes[chosen].tolist() == find_regions(mask).boxes.tolist()


def test_the_complement_is_the_other_pixels() -> None:
    for mask in random_masks(60):
        turned, expected = mask_runs(mask).complement(), mask_runs(~mask)
        assert np.array_equal(turned.starts, expected.starts)
        assert np.array_equal(turned.ends, expected.ends)


@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
def test_the_runs_of_levels_are_those_of_their_masks(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RUNS_AT_ONCE", at_once)
    rng = np.random.default_rng(2)
    for _ in range(40):
        height, width, count = rng.integers(1, 9, 3)
        levels = rng.integers(0, count + 1, (height, width))
        seen = []
        for masks, runs in level_runs(levels, int(count)):
            numbers = np.arange(count)[masks]
            expected = mask_runs(levels > numbers[:, None, None])
            assert runs.shape == expected.shape
            assert np.array_equal(runs.starts, expected.starts)
            assert np.array_equal(runs.ends, expected.ends)
            seen += numbers.tolist()
        assert seen == list(range(count))


def test_masks_of_other_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        find_regions(np.ones(4, bool))
