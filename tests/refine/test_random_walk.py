"""The sparse walk against PSA's dense matrix: official numbers, and a dense reference for what they lack."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsss_rt.errors import UsageError
from wsss_rt.localize import decide
from wsss_rt.refine.random_walk import pool, random_walk, walk, with_background
from wsss_rt.refine.walk_params import PRESETS, WalkParams, pair_offsets, walk_params

Array = np.ndarray[Any, Any]


def planes(matrix: Array, grid: tuple[int, int], radius: int = 5) -> Array:
    """Affinity (K, rows, columns) from the matrix of all pairs of cells."""
    rows, columns = grid
    found = np.zeros((len(pair_offsets(radius)), rows, columns), np.float32)
    for plane, (dy, dx) in zip(found, pair_offsets(radius), strict=True):
        for y in range(rows - dy):
            for x in range(max(0, -dx), columns - max(0, dx)):
                plane[y, x] = matrix[y * columns + x, (y + dy) * columns + x + dx]
    return found


def dense_matrix(affinity: Array, radius: int) -> Array:
    """PSA's matrix in float64, by its definition: pairs begin in rows 0..h-r and columns r-1..w-r."""
    _, rows, columns = affinity.shape
    matrix = np.eye(rows * columns)
    for plane, (dy, dx) in zip(affinity.astype(np.float64), pair_offsets(radius), strict=True):
        for y in range(rows - radius + 1):
            for x in range(radius - 1, columns - radius + 1):
                first, second = y * columns + x, (y + dy) * columns + x + dx
                matrix[first, second] = matrix[second, first] = plane[y, x]
    return matrix


def dense_walk(values: Array, matrix: Array, *, beta: float, squarings: int) -> Array:
    transitions = matrix**beta
    transitions /= transitions.sum(axis=0, keepdims=True)
    for _ in range(squarings):
        transitions = transitions @ transitions
    return (values.reshape(len(values), -1).astype(np.float64) @ transitions).reshape(values.shape)


def random_case(rows: int, columns: int, *, radius: int = 5, classes: int = 3) -> tuple[Array, Array]:
    random = np.random.default_rng(rows * 100 + columns)
    affinity = random.random((len(pair_offsets(radius)), rows, columns), dtype=np.float32)
    return random.random((classes, rows, columns), dtype=np.float32), affinity


def test_the_official_walk_is_reached_and_every_label_is_the_same(goldens_dir: Path) -> None:
    golden = np.load(goldens_dir / "mctformer" / "psa_random_walk_mct.npz", allow_pickle=False)
    affinity = planes(golden["aff_mat"], (10, 12))
    height, width = golden["image"].shape[:2]
    keys = [0, *(int(key) + 1 for key in golden["cam_keys"])]
    scores = np.concatenate((np.full((1, height, width), 0.39, np.float32), golden["cam"]))

    pooled = pool(scores)
    assert np.abs(pooled.reshape(3, -1) - golden["cam_vec"][keys]).max() < 1e-6
    walked = walk(pooled, affinity, PRESETS["mctformer"])
    assert np.abs(walked - golden["cam_rw"][keys]).max() < 2e-5
    result = random_walk(scores, affinity, PRESETS["mctformer"])
    official = golden["cam_rw_up_present"][:, :height, :width]
    assert np.abs(result - official).max() < 2e-5
    mask = decide(result[1:], [key - 1 for key in keys[1:]], background=result[0]).mask
    assert np.array_equal(mask, golden["pred"])


@pytest.mark.parametrize("grid", [(5, 9), (6, 17), (13, 10)])
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_dense_reference_is_reached(grid: tuple[int, int], preset: str) -> None:
    values, affinity = random_case(*grid)
    params = PRESETS[preset]
    squarings = int(np.log2(params.steps))
    expected = dense_walk(values, dense_matrix(affinity, 5), beta=params.beta, squarings=squarings)
    assert np.abs(walk(values, affinity, params) - expected).max() < 2e-5


def test_radius_beta_and_steps_are_heard() -> None:
    values, affinity = random_case(12, 14)
    chosen = [pair_offsets(5).index(offset) for offset in pair_offsets(3)]
    expected = dense_walk(values, dense_matrix(affinity[chosen], 3), beta=2.5, squarings=3)
    found = walk(values, affinity, WalkParams(radius=3, beta=2.5, steps=8))
    assert np.abs(found - expected).max() < 2e-5
    assert np.array_equal(walk(values, affinity, WalkParams(steps=0)), values)


def test_psas_background_is_what_the_classes_leave() -> None:
    scores = np.stack([np.full((9, 9), value, np.float32) for value in (0.9, 0.25, 0.5)])
    found = with_background(scores, 4.0)
    assert np.allclose(found[0], 0.5**4) and np.array_equal(found[1:], scores[1:])
    assert with_background(scores, None) is scores
    # an image without classes has nothing to leave
    assert with_background(scores[:1], 4.0) is scores[:1] or len(with_background(scores[:1], 4.0)) == 1


def test_a_score_stays_on_its_side_of_a_wall_and_in_range() -> None:
    affinity = np.ones((34, 20, 24), np.float32)
    for plane, (_, dx) in zip(affinity, pair_offsets(), strict=True):
        # pairs across the middle have nothing in common
        columns = np.arange(24)
        plane[:, (columns < 12) != (columns + dx < 12)] = 0.01
    scores = np.zeros((2, 157, 190), np.float32)
    scores[1, 60:80, 40:60] = 1
    result = random_walk(scores, affinity)
    assert result.min() >= 0 and result.max() <= 1
    assert result[1, 8:120, 40:80].min() > 100 * result[1, :, 104:].max() > 0
    assert not result[0].any()


@pytest.mark.parametrize("size", [(1, 1), (17, 200), (200, 40), (32, 64)])
def test_an_image_too_small_for_the_official_pairs_still_walks(size: tuple[int, int]) -> None:
    rows, columns = -(-size[0] // 8), -(-size[1] // 8)
    random = np.random.default_rng(3)
    scores = random.random((2, *size), dtype=np.float32)
    result = random_walk(scores, np.ones((34, rows, columns), np.float32), WalkParams(steps=256))
    assert result.shape == scores.shape and np.isfinite(result).all()
    if rows * columns > 1:
        # full affinity within reach, and a long walk: nothing is left of the noise
        assert np.ptp(result[1]) < 0.2 * np.ptp(pool(scores)[1])


def test_memory_grows_with_the_pixels_and_2000_by_2000_fits_in_2_gb() -> None:
    peaks = {}
    for side, planes_ in ((1000, 2), (2000, 2), (2000, 21)):
        scores = np.full((planes_, side, side), 0.5, np.float32)
        affinity = np.full((34, side // 8, side // 8), 0.5, np.float32)
        tracemalloc.start()
        random_walk(scores, affinity, WalkParams(steps=1))
        peaks[side, planes_] = tracemalloc.get_traced_memory()[1] + scores.nbytes + affinity.nbytes
        tracemalloc.stop()
    assert peaks[2000, 2] < 4.5 * peaks[1000, 2]
    # all classes of PASCAL VOC at once
    assert peaks[2000, 21] < 1e9


def test_other_shapes_are_refused() -> None:
    scores = np.zeros((2, 80, 96), np.float32)
    with pytest.raises(ValueError, match=r"\(K, 10, 12\)"):
        random_walk(scores, np.zeros((34, 12, 10), np.float32))
    with pytest.raises(ValueError, match="33 planes"):
        random_walk(scores, np.zeros((33, 10, 12), np.float32))


@pytest.mark.parametrize(
    "changes", [{"beta": 0.0}, {"beta": float("nan")}, {"steps": -1}, {"radius": 1}, {"alpha": -0.5}]
)
def test_parameters_out_of_range_are_named(changes: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"walk-{next(iter(changes))}"):
        walk_params(changes=changes)


def test_a_misspelt_preset_or_parameter_meets_the_nearest() -> None:
    with pytest.raises(UsageError, match="mctformer"):
        walk_params("mctforme")
    with pytest.raises(UsageError, match="steps"):
        walk_params(changes={"step": 3})
