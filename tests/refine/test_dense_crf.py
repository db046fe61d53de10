"""The dense CRF against a plain one, against what pydensecrf gave, and on odd input."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.processes import run_python
from tests.refine.reference import mean_field
from wsss_rt.errors import ImageError, UsageError, WsssError
from wsss_rt.refine.dense_crf import dense_crf, dense_crf_each
from wsss_rt.refine.lattice import band_rows
from wsss_rt.refine.memory import crf_bytes
from wsss_rt.refine.params import PRESETS, CrfParams, crf_params

# no whole number in position: there a pixel lies on the border of two simplices, and rounding chooses
SMALL = CrfParams(spatial_sxy=2.3, bilateral_sxy=8, bilateral_srgb=20, iterations=5)


def picture(height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """A disc on a plain ground, with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 3) ** 2
    colors = np.where(disc[..., None], (200, 90, 40), (60, 110, 150))
    return np.clip(colors + rng.normal(0, 12, colors.shape), 0, 255).astype(np.uint8)


def scores(classes: int, height: int, width: int, *, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((classes, height, width), np.float32)


@pytest.mark.parametrize(("classes", "size"), [(2, (12, 17)), (4, (9, 7)), (5, (8, 11)), (9, (6, 6))])
def test_equals_a_plain_lattice(classes: int, size: tuple[int, int]) -> None:
    image, given = picture(*size), scores(classes, *size)
    found = dense_crf(image, given, SMALL)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, mean_field(image, given, SMALL), atol=2e-5)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)


def test_is_near_the_sum_over_all_pairs() -> None:
    """The lattice only approximates a Gaussian: a bound of sanity, not of exactness."""
    image, given = picture(20, 24), scores(3, 20, 24)
    found, exact = dense_crf(image, given, SMALL), mean_field(image, given, SMALL, exact=True)
    assert np.abs(found - exact).mean() < 0.05
    assert (found.argmax(axis=0) == exact.argmax(axis=0)).mean() > 0.95


@pytest.mark.parametrize("name", ["2007_000491", "2007_000783", "2007_002268", "2007_005331"])
def test_gives_the_marginals_of_pydensecrf(shared_dir: Path, name: str) -> None:
    golden = np.load(shared_dir / "goldens" / "dense_crf" / f"{name}.npz")
    with Image.open(shared_dir / "data" / "voc_animals" / "JPEGImages" / f"{name}.jpg") as opened:
        image = np.asarray(opened.convert("RGB"))
    given = golden["probs_u16"].astype(np.float32) / np.float32(65535)
    given /= given.sum(axis=0)
    *kernels, iterations = golden["params"]
    params = CrfParams(*(float(value) for value in kernels), iterations=int(iterations))
    wanted = golden["q_u16"].astype(np.float32) / 65535
    found = dense_crf(image, given, params)
    assert np.abs(found - wanted).max() <= 1e-4
    assert (found.argmax(axis=0) == wanted.argmax(axis=0)).mean() >= 0.9999


def test_agrees_with_pydensecrf_where_it_is_installed() -> None:
    pytest.importorskip("pydensecrf.densecrf")
    from wsss_rt.refine import pydensecrf_backend

    image, given = picture(60, 80), scores(3, 60, 80)
    for params in PRESETS.values():
        wanted = pydensecrf_backend.dense_crf(image, given, params)
        np.testing.assert_allclose(dense_crf(image, given, params), wanted, atol=1e-4)


def test_threads_change_no_bit() -> None:
    height, width = 260, 300
    assert len(band_rows(height, width)) > 1
    image, given = picture(height, width), scores(3, height, width)
    alone = dense_crf(image, given, SMALL)
    np.testing.assert_array_equal(dense_crf(image, given, SMALL, threads=2), alone)
    np.testing.assert_array_equal(dense_crf(image, given, SMALL, threads=3), alone)


def test_images_may_be_refined_at_once() -> None:
    image, given = picture(40, 50), scores(2, 40, 50)
    alone = dense_crf(image, given, SMALL)
    found: list[NDArray[np.float32]] = []
    threads = [
        threading.Thread(target=lambda: found.append(dense_crf(image, given, SMALL))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for one in found:
        np.testing.assert_array_equal(one, alone)


def test_ends_early_when_labels_settle() -> None:
    image, given = picture(30, 40), scores(3, 30, 40)
    early = dense_crf(image, given, CrfParams(stop=0.02))
    steps = [dense_crf(image, given, CrfParams(iterations=count)) for count in range(2, 11)]
    taken = [count for count, found in enumerate(steps, start=2) if np.array_equal(found, early)]
    assert taken and 2 <= taken[0] < 10
    alone = CrfParams(iterations=1, stop=0.9)
    np.testing.assert_array_equal(
        dense_crf(image, given, alone), dense_crf(image, given, CrfParams(iterations=1))
    )


def test_several_probabilities_share_their_lattice() -> None:
    image = picture(20, 24)
    several = [scores(2, 20, 24), scores(6, 20, 24)]
    for given, found in zip(several, dense_crf_each(image, several, SMALL), strict=True):
        np.testing.assert_array_equal(found, dense_crf(image, given, SMALL))


def test_what_needs_too_much_memory_is_refused_before_it_takes_it() -> None:
    image, given = picture(6, 7), scores(2, 6, 7)
    with pytest.raises(ImageError, match="7x6 px and 2 classes needs at least .* GB, more than") as caught:
        dense_crf(image, given, memory_limit=3000)
    assert caught.value.code == "out_of_memory"
    # one that only its vertices bring over the limit
    with pytest.raises(ImageError, match="needs at least"):
        dense_crf(image, given, memory_limit=crf_bytes(6, 7, 2))
    assert dense_crf(image, given, memory_limit=1e6).shape == given.shape


def test_sharpens_a_noisy_disc() -> None:
    image = picture(60, 80)
    truth = image[..., 0] > 130
    noise = np.random.default_rng(2).normal(0, 0.35, truth.shape)
    foreground = np.clip(np.where(truth, 0.65, 0.35) + noise, 0.01, 0.99).astype(np.float32)
    given = np.stack([1 - foreground, foreground])
    before = (given.argmax(axis=0) == truth).mean()
    assert before < 0.8
    assert (dense_crf(image, given).argmax(axis=0) == truth).mean() > 0.97


@pytest.mark.parametrize(("size", "tolerance"), [((1, 1), 2e-5), ((1, 40), 2e-5), ((40, 1), 0.05)])
def test_a_pixel_and_a_line(size: tuple[int, int], tolerance: float) -> None:
    """In a column, pixels lie where three simplices meet: rounding chooses a vertex of weight zero there."""
    image, given = picture(*size), scores(3, *size)
    np.testing.assert_allclose(
        dense_crf(image, given, SMALL), mean_field(image, given, SMALL), atol=tolerance
    )


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (93, 93, 93), (12, 200, 77)])
def test_constant_and_gray_images(color: tuple[int, int, int]) -> None:
    image, given = np.full((9, 14, 3), color, np.uint8), scores(2, 9, 14)
    np.testing.assert_allclose(dense_crf(image, given, SMALL), mean_field(image, given, SMALL), atol=1e-4)


def test_one_class_is_certain() -> None:
    assert (dense_crf(picture(5, 6), scores(1, 5, 6)) == 1).all()


def test_more_classes_than_a_byte_holds() -> None:
    given = np.full((300, 8, 9), 1e-3, np.float32)
    given[277] = 0.9
    found = dense_crf(picture(8, 9), given)
    assert (found.argmax(axis=0) == 277).all()
    assert np.isfinite(found).all()


def test_zeros_and_ones_are_clipped_and_every_step_count_works() -> None:
    image, given = picture(10, 12), np.zeros((3, 10, 12), np.float32)
    given[1, :, 6:] = 1
    for iterations in (0, 1, 2):
        params = CrfParams(iterations=iterations)
        found = dense_crf(image, given, params)
        np.testing.assert_allclose(found, mean_field(image, given, params), atol=2e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_costs_the_image(value: float) -> None:
    given = scores(2, 6, 7)
    given[1, 3, 3] = value
    with pytest.raises(ImageError, match="NaN or infinity") as caught:
        dense_crf(picture(6, 7), given)
    assert caught.value.code == "nonfinite_output"


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="probabilities"):
        dense_crf(picture(6, 7), scores(2, 7, 6))
    with pytest.raises(ValueError, match="image"):
        dense_crf(picture(6, 7).astype(np.float32), scores(2, 6, 7))  # type: ignore[arg-type]
    with pytest.raises(WsssError, match="too narrow"):
        dense_crf(picture(6, 7), scores(2, 6, 7), CrfParams(bilateral_sxy=0.1, bilateral_srgb=0.1))


def test_inputs_stay_as_they_are() -> None:
    image, given = picture(6, 7), scores(2, 6, 7)
    image.flags.writeable = given.flags.writeable = False
    turned = dense_crf(image[:, ::-1], given[..., ::-1], SMALL)
    assert turned.shape == given.shape


def test_presets_and_changes() -> None:
    assert crf_params("segmentation", {"iterations": 3}) == CrfParams(4, 3, 83, 5, 3, 3)
    assert (crf_params("psa").alpha, crf_params("psa").high_alpha) == (4, 32)
    with pytest.raises(UsageError, match="'segmentation'"):
        crf_params("segmentaton")
    with pytest.raises(UsageError, match="at least 0.1"):
        crf_params(changes={"bilateral_srgb": 0})
    with pytest.raises(UsageError, match="finite"):
        crf_params(changes={"spatial_compat": float("nan")})


def test_numba_is_imported_only_where_a_crf_runs() -> None:
    code = (
        "import sys, wsss_rt.labeler, wsss_rt.options, wsss_rt.refine as refine\n"
        "refine.open_refiner(wsss_rt.options.LabelOptions(refine='crf'))\n"
        "assert 'numba' not in sys.modules\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
