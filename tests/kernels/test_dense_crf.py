"""The CRF of a batch: kernels against PyTorch, both against the CPU's CRF and what pydensecrf gave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.kernels.memory import Held
from wsss_rt.crew import Crew
from wsss_rt.errors import ImageError, ImageErrorCode, WsssError
from wsss_rt.kernels import KernelUnavailableError, last_path, use_kernels
from wsss_rt.kernels.dense_crf import dense_crf, dense_crf_each, lattice, prepare, reference
from wsss_rt.kernels.dense_crf.cases import SMALL, parity, pictures, shares
from wsss_rt.refine.dense_crf import dense_crf as cpu_crf
from wsss_rt.refine.lattice import build_lattice
from wsss_rt.refine.params import PRESETS, CrfParams

MODES = ("reference", "triton")


@pytest.fixture
def large_tiles(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Tiles that no GPU would hold: the interpreter's time is that of its programs, whatever their size."""
    if device == "cpu":
        monkeypatch.setattr("wsss_rt.kernels.dense_crf.triton._TILE", 1 << 17)


def settings(params: CrfParams) -> dict[str, Any]:
    """As keyword arguments; the background is made by the caller."""
    names = ("spatial_sxy", "spatial_compat", "bilateral_sxy", "bilateral_srgb", "bilateral_compat")
    return {name: getattr(params, name) for name in (*names, "iterations", "stop")}


@pytest.mark.parametrize("smooth", [0, 1, 5])
@pytest.mark.parametrize("classes", [2, 21])
def test_the_memory_that_is_counted_is_what_is_held(smooth: int, classes: int) -> None:
    """Of smooth images and of noise, which has ten times the vertices; of the reference, which runs here."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 120, 3), dtype=np.uint8)
    image = torch.from_numpy(cv2.GaussianBlur(noise, (0, 0), smooth) if smooth else noise)
    given, counts = torch.rand(classes, 96, 120), list[int]()
    with Held() as held:
        dense_crf_each([image], [given], iterations=2, admit=counts.append)
    least, counted = counts
    taken = held.peak + image.nbytes + given.nbytes
    assert least < counted and 0.85 < taken / counted < 1.15

    def never(needed: int) -> None:
        raise ImageError(ImageErrorCode.OUT_OF_MEMORY, str(needed))

    with Held() as held, pytest.raises(ImageError, match=str(least)):
        dense_crf_each([image], [given], iterations=2, admit=never)
    assert held.peak == 0


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        ((2, 3, 5, 7), {"iterations": 2}),
        ((1, 2, 1, 1), {}),
        ((1, 4, 1, 13), {"iterations": 2}),
        ((1, 5, 9, 1), {"iterations": 1}),
        ((1, 1, 4, 4), {"iterations": 1}),
        ((1, 6, 3, 4), {"iterations": 0}),
    ],
    ids=str,
)
def test_as_good_as_pytorch(shape: tuple[int, int, int, int], changes: dict[str, Any], device: str) -> None:
    verdicts = parity(*shape, **changes, device=device)
    print(*(verdict.as_dict() for verdict in verdicts), sep="\n")
    assert all(verdict.passed for verdict in verdicts)
    assert str(last_path("dense_crf")) == "reference"
    with use_kernels("triton"):
        dense_crf(pictures(1, 1, 1, device=device), shares(1, 2, 1, 1, device=device), iterations=1)
    assert last_path("dense_crf") == "triton[start,1x(splat,sum,blur6,update)]"


@pytest.mark.parametrize(("shape", "flat"), [((1, 70, 4, 5), False), ((1, 3, 20, 25), True)], ids=str)
def test_many_classes_and_vertices_of_several_pieces(
    shape: tuple[int, int, int, int], flat: bool, device: str, large_tiles: None
) -> None:
    if flat:
        images = list(pictures(1, *shape[2:], flat=True))
        field = prepare(
            images,
            list(shares(*shape)),
            spatial=(2.3, 3.0),
            bilateral=(8.0, 20.0, 10.0),
            density=reference.density,
        )
        assert len(field.lattice.pieces) > len(field.lattice.owners)
    verdicts = parity(*shape, iterations=2, flat=flat, device=device)
    assert all(verdict.passed for verdict in verdicts), verdicts


@pytest.mark.parametrize("mode", MODES)
def test_gives_the_marginals_of_the_cpu(mode: str, device: str, large_tiles: None) -> None:
    images, given = pictures(1, 21, 26), shares(1, 3, 21, 26)
    for params in (*PRESETS.values(), CrfParams(2.3, 3, 8, 20, 10, 3)):
        chosen = replace(params, iterations=3)
        wanted = cpu_crf(images[0].numpy(), given[0].numpy(), chosen)
        with use_kernels(mode):
            found = dense_crf(images.to(device), given.to(device), **settings(chosen))
        assert np.abs(found[0].cpu().numpy() - wanted).max() <= 1e-4
        torch.testing.assert_close(found.sum(dim=1), torch.ones_like(found[:, 0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("deviations", [(3.0, 3.0), (80.0, 80.0, 13.0, 13.0, 13.0)], ids=["near", "alike"])
def test_vertices_are_those_of_the_cpu(deviations: tuple[float, ...]) -> None:
    image = pictures(1, 60, 83)[0]
    with Crew(1) as crew:
        wanted = build_lattice(image.numpy(), deviations, strength=1.0, crew=crew)
    names = lattice.name_vertices(60, 83, deviations)
    y, x = (torch.arange(side, dtype=torch.float32) for side in (60, 83))
    features = [x.repeat(60), y.repeat_interleave(83), *image.reshape(-1, 3).T.float()]
    found, weights = lattice.embed(features[: len(deviations)], names)
    connected = lattice.connect(found, weights, names)
    assert connected.neighbours.shape[2] == wanted.size
    # each axis joins as many pairs of vertices
    pairs = (connected.neighbours[:, 0] >= 0).sum(dim=1).tolist()
    assert pairs == (wanted.neighbours[:, :, 0] < wanted.size).sum(axis=1).tolist()
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(60 * 83), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_every_image_ends_for_itself(mode: str, device: str, large_tiles: None) -> None:
    images = [pictures(1, 12, 15)[0], pictures(1, 9, 11, flat=True)[0]]
    # no step changes a label of the second
    certain = torch.tensor([0.01, 0.98, 0.01])[:, None, None].expand(3, 9, 11)
    given = [shares(1, 2, 12, 15)[0], certain]
    params = CrfParams(2.3, 3, 8, 20, 10, 5, stop=0.02)
    with use_kernels(mode):
        together = dense_crf_each(
            [image.to(device) for image in images],
            [planes.to(device) for planes in given],
            **settings(params),
        )
    full = CrfParams(2.3, 3, 8, 20, 10, 5)
    for image, planes, found, ended in zip(images, given, together, (5, 2), strict=True):
        case = (image.numpy(), planes.numpy())
        wanted = cpu_crf(*case, params)
        assert np.array_equal(wanted, cpu_crf(*case, replace(full, iterations=ended)))
        assert np.abs(wanted - found.cpu().numpy()).max() <= 1e-5


def test_an_image_has_the_same_bits_in_any_company(device: str, large_tiles: None) -> None:
    images = [pictures(1, *size, device=device)[0] for size in ((6, 9), (8, 5), (6, 9))]
    given = [shares(1, 3, *image.shape[:2], device=device)[0] for image in images]
    with use_kernels("triton"):
        together = dense_crf_each(images, given, **SMALL, iterations=2)
        for image, planes, found in zip(images, given, together, strict=True):
            alone = dense_crf(image[None], planes[None], **SMALL, iterations=2)
            assert torch.equal(alone[0], found)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["reference", pytest.param("triton", marks=pytest.mark.large)])
@pytest.mark.parametrize("name", ["2007_000491", "2007_000783", "2007_002268", "2007_005331"])
def test_gives_the_marginals_of_pydensecrf(
    shared_dir: Path, name: str, mode: str, device: str, large_tiles: None
) -> None:
    golden = np.load(shared_dir / "goldens" / "dense_crf" / f"{name}.npz")
    with Image.open(shared_dir / "data" / "voc_animals" / "JPEGImages" / f"{name}.jpg") as opened:
        image = torch.from_numpy(np.asarray(opened.convert("RGB")).copy()).to(device)
    given = torch.from_numpy(golden["probs_u16"].astype(np.float32) / np.float32(65535)).to(device)
    *kernels, iterations = golden["params"]
    params = CrfParams(*(float(value) for value in kernels), iterations=int(iterations))
    wanted = golden["q_u16"].astype(np.float32) / 65535
    with use_kernels(mode):
        found = dense_crf(image[None], (given / given.sum(dim=0))[None], **settings(params))
    marginals = found[0].cpu().numpy()
    assert np.abs(marginals - wanted).max() <= 1e-4
    assert (marginals.argmax(axis=0) == wanted.argmax(axis=0)).mean() >= 0.9999


def test_no_images_and_a_view_of_images(device: str) -> None:
    with use_kernels("triton"):
        assert dense_crf(
            torch.empty((0, 4, 5, 3), dtype=torch.uint8, device=device),
            torch.empty(0, 2, 4, 5, device=device),
        ).shape == (0, 2, 4, 5)
        assert dense_crf_each([], []) == []
    images, given = pictures(1, 5, 8, device=device), shares(1, 2, 5, 8, device=device)
    turned = dense_crf(images.flip(2)[:, :, ::2], given[..., ::2], **SMALL, iterations=1)
    straight = dense_crf(
        images.flip(2)[:, :, ::2].contiguous(), given[..., ::2].contiguous(), **SMALL, iterations=1
    )
    assert torch.equal(turned, straight)
    assert float(given.max()) <= 1


def test_what_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    images, given = pictures(1, 4, 5), shares(1, 2, 4, 5)
    with pytest.raises(ValueError, match=r"probabilities \(C, 4, 5\), got \(2, 5, 4\)"):
        dense_crf(images, given.transpose(2, 3))
    with pytest.raises(ValueError, match="uint8"):
        dense_crf(images.float(), given)
    with pytest.raises(ValueError, match="float32"):
        dense_crf(images, given.double())
    with pytest.raises(ValueError, match="2 images and probabilities of 1"):
        dense_crf_each([images[0]] * 2, [given[0]])
    with pytest.raises(WsssError, match="too narrow for 1 image of 5x4 px"):
        dense_crf(images, given, bilateral_sxy=0.1, bilateral_srgb=0.1)
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match="5000 classes"):
        dense_crf(images[:, :1, :1], torch.rand(1, 5000, 1, 1))
    monkeypatch.setattr(lattice, "_LARGEST_INT32", 100)
    with pytest.raises(WsssError, match="20 px at once"):
        dense_crf(images, given)


def test_shapes_are_known_without_running() -> None:
    """What torch.compile and torch.export see of the operators."""
    pytest.importorskip("wsss_rt.kernels.dense_crf.triton")
    images, given = list(pictures(1, 3, 4)), list(shares(1, 2, 3, 4))
    field = prepare(
        images, given, spatial=(3.0, 3.0), bilateral=(80.0, 13.0, 10.0), density=reference.density
    )
    tensors: list[Tensor] = list(field.lattice)
    arguments = (field.log_p, tensors, field.sizes, 1, 0.0)
    torch.library.opcheck(
        torch.ops.wsss_rt.mean_field, arguments, test_utils=("test_schema", "test_faketensor")
    )
    torch.library.opcheck(
        torch.ops.wsss_rt.lattice_density, (tensors,), test_utils=("test_schema", "test_faketensor")
    )
