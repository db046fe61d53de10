"""The random walk of a batch: the kernel's two forms against plain PyTorch, the CPU's and PSA's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.refine.test_random_walk import planes
from wsss_rt.kernels import KernelUnavailableError, last_path, use_kernels
from wsss_rt.kernels.random_walk import random_walk
from wsss_rt.kernels.random_walk.cases import case_of, parity
from wsss_rt.kernels.random_walk.transitions import pair_offsets
from wsss_rt.refine.random_walk import pool, walk
from wsss_rt.refine.walk_params import WalkParams
from wsss_rt.refine.walk_params import pair_offsets as cpu_offsets


@pytest.fixture(params=["walk", "step"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All steps in one launch, or a launch a step."""
    if request.param == "step":
        monkeypatch.setattr("wsss_rt.kernels.random_walk.triton.ALONE", 0)
    return str(request.param)


@pytest.mark.parametrize(
    ("shape", "radius", "steps"),
    [
        # batch, classes, rows, columns
        ((2, 3, 7, 11), 5, 2),
        ((1, 5, 13, 10), 3, 3),
        ((1, 2, 1, 1), 5, 2),
        ((2, 1, 1, 17), 3, 1),
        ((1, 4, 6, 2), 5, 1),
        ((1, 1, 19, 60), 2, 1),
        ((1, 2, 4, 4), 5, 0),
    ],
    ids=str,
)
def test_as_good_as_pytorch(
    shape: tuple[int, int, int, int], radius: int, steps: int, form: str, device: str
) -> None:
    verdicts = parity(*shape, radius=radius, steps=steps, device=device)
    print(*(verdict.as_dict() for verdict in verdicts), sep="\n")
    assert all(verdict.passed for verdict in verdicts)


def test_the_form_is_what_runs(form: str, device: str) -> None:
    with use_kernels("triton"):
        random_walk(*case_of(1, 1, 2, 3, device=device), steps=2)
    assert last_path("random_walk") == ("triton[walk of 2]" if form == "walk" else "triton[2x step]")


def test_gives_the_scores_of_the_cpu(device: str) -> None:
    for grid, params in (
        ((13, 17), WalkParams(steps=256)),
        ((4, 9), WalkParams(radius=3, beta=2.5, steps=8)),
    ):
        scores, affinity = case_of(2, 3, *grid)
        found = random_walk(
            scores.to(device), affinity.to(device), beta=params.beta, steps=params.steps, radius=params.radius
        )
        assert last_path("random_walk") == "reference"
        for one, *case in zip(found.cpu().numpy(), scores.numpy(), affinity.numpy(), strict=True):
            assert np.abs(one - walk(*case, params)).max() < 2e-5


@pytest.mark.slow
def test_the_official_walk_is_reached_by_both_paths(goldens_dir: Path, device: str) -> None:
    golden = np.load(goldens_dir / "mctformer" / "psa_random_walk_mct.npz", allow_pickle=False)
    affinity = torch.from_numpy(planes(golden["aff_mat"], (10, 12)))[None].to(device)
    height, width = golden["image"].shape[:2]
    keys = [0, *(int(key) + 1 for key in golden["cam_keys"])]
    scores = np.concatenate((np.full((1, height, width), 0.39, np.float32), golden["cam"]))
    pooled = torch.from_numpy(pool(scores))[None].to(device)
    for mode in ("reference", "triton"):
        with use_kernels(mode):
            walked = random_walk(pooled, affinity)
        assert np.abs(walked[0].cpu().numpy() - golden["cam_rw"][keys]).max() < 2e-5


def test_constant_planes_stay_to_the_last_bit(form: str, device: str) -> None:
    _, affinity = case_of(1, 1, 6, 11, device=device)
    scores = torch.full((1, 3, 6, 11), 0.3, device=device)
    scores[:, 1] = 0
    scores[:, 2] = 1
    with use_kernels("triton"):
        assert torch.equal(random_walk(scores, affinity, steps=3), scores)
    assert torch.equal(random_walk(scores, affinity, steps=300), scores)


def test_no_images_no_classes_and_views(device: str) -> None:
    scores, affinity = case_of(2, 4, 5, 9, device=device)
    with use_kernels("triton"):
        assert random_walk(scores[:0], affinity[:0]).shape == (0, 4, 5, 9)
        assert random_walk(scores[:, :0], affinity).shape == (2, 0, 5, 9)
        turned = random_walk(scores[:, ::2].flip(3), affinity.flip(3), steps=1)
        assert torch.equal(
            turned, random_walk(scores[:, ::2].flip(3).contiguous(), affinity.flip(3), steps=1)
        )
    assert not torch.equal(turned, scores[:, ::2].flip(3))


def test_pairs_are_those_of_the_cpu() -> None:
    for radius in (2, 3, 5, 8):
        assert pair_offsets(radius) == cpu_offsets(radius)


def test_what_does_not_fit_is_named() -> None:
    scores, affinity = case_of(1, 2, 4, 5)
    with pytest.raises(ValueError, match="33 planes"):
        random_walk(scores, affinity[:, :33])
    with pytest.raises(ValueError, match=r"scores \(B, C, rows, columns\)"):
        random_walk(scores[0], affinity)
    with pytest.raises(ValueError, match=r"\(1, 34, 4, 4\)"):
        random_walk(scores, affinity[..., :4])
    with pytest.raises(ValueError, match="float32"):
        random_walk(scores.double(), affinity)
    with use_kernels("triton"), pytest.raises(KernelUnavailableError, match="no backward pass"):
        random_walk(scores.requires_grad_(), affinity)


def test_shapes_are_known_without_running() -> None:
    """What torch.compile and torch.export see of the operator."""
    pytest.importorskip("wsss_rt.kernels.random_walk.triton")
    arguments = (torch.rand(1, 2, 6), torch.rand(1, 1, 6), [1], torch.rand(1, 6), 1)
    torch.library.opcheck(
        torch.ops.wsss_rt.random_walk, arguments, test_utils=("test_schema", "test_faketensor")
    )
