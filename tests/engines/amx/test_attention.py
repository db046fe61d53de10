"""Attention in tiles against float64: any number of tokens, heads of both widths, parts of the mean."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from wsss_rt.crew import Crew
from wsss_rt.engines import amx

if (refusal := amx.refusal()) is not None:
    pytest.skip(refusal, allow_module_level=True)

from wsss_rt.engines.amx.attention import Part, Workspace, attention, warm_up

TOKENS = (1, 2, 16, 31, 32, 33, 65, 150)


@dataclass(frozen=True)
class Exact:
    """Attention in float64."""

    mixed: NDArray[np.float64]
    mean: NDArray[np.float64]


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    with Crew(1) as alone:
        yield alone


def inputs(tokens: int, heads: int, width: int, *, size: float = 1.0) -> NDArray[np.float32]:
    rng = np.random.default_rng(tokens * 100 + heads)
    return (rng.standard_normal((tokens, 3 * heads * width)) * size).astype(np.float32)


def rounded(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """To the eight bits that a bfloat16 keeps."""
    fraction, exponent = np.frexp(np.asarray(values, np.float64))
    return np.ldexp(np.round(fraction * 256) / 256, exponent)


def exactly(qkv: NDArray[np.float32], heads: int, scale: float, *, low: bool = False) -> Exact:
    """In float64; with ``low``, as a graph of bfloat16 operations has it, which rounds after each of them."""
    keep = rounded if low else np.asarray
    tokens = len(qkv)
    parts = keep(qkv.astype(np.float64)).reshape(tokens, 3, heads, -1).transpose(1, 2, 0, 3)
    q, k, v = parts
    logits = keep(q @ k.transpose(0, 2, 1) * scale)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights = keep(powers / powers.sum(axis=-1, keepdims=True))
    mixed = keep(weights @ v).transpose(1, 0, 2).reshape(tokens, -1)
    return Exact(mixed, keep(weights.mean(axis=0)))


def poisoned(*shape: int) -> NDArray[np.float32]:
    return np.full(shape, np.nan, np.float32)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("heads", "width"), [(1, 64), (3, 64), (4, 32), (1, 32)])
def test_errs_no_more_than_a_graph_in_bfloat16(crew: Crew, tokens: int, heads: int, width: int) -> None:
    qkv, scale = inputs(tokens, heads, width, size=1.5), width**-0.5
    out, mean = poisoned(tokens, heads * width), poisoned(tokens, tokens)
    attention(qkv, out, [Part(0, 0, mean)], heads=heads, scale=scale, workspace=Workspace(), crew=crew)
    exact, low = (exactly(qkv, heads, scale, low=low) for low in (False, True))
    for found, wanted, usual in ((out, exact.mixed, low.mixed), (mean, exact.mean, low.mean)):
        allowed = 2 * np.abs(usual - wanted).max() + 1e-6 * np.abs(wanted).max()
        assert np.abs(found - wanted).max() <= allowed
        if tokens > 30:
            # of many numbers it is no matter of luck: fewer are rounded
            assert np.square(found - wanted).sum() <= np.square(usual - wanted).sum()
    # rows of a softmax sum to 1, whatever was rounded before it
    assert np.abs(mean.sum(axis=1, dtype=np.float64) - 1).max() <= 1e-5


@pytest.mark.parametrize("tokens", [5, 33, 100])
def test_windows_are_what_they_cut_from_the_mean(crew: Crew, tokens: int) -> None:
    qkv, classes = inputs(tokens, 2, 32), 3
    rows, block = poisoned(classes, tokens - classes), poisoned(tokens - classes, tokens - classes)
    out, whole = poisoned(tokens, 64), poisoned(tokens, tokens)
    work = Workspace()
    attention(qkv, out, [Part(0, 0, whole)], heads=2, scale=0.2, workspace=work, crew=crew)
    parts = [Part(0, classes, rows), Part(classes, classes, block)]
    attention(qkv, poisoned(tokens, 64), parts, heads=2, scale=0.2, workspace=work, crew=crew)
    assert np.array_equal(rows, whole[:classes, classes:])
    assert np.array_equal(block, whole[classes:, classes:])


def test_a_part_is_added_to_what_was_before(crew: Crew) -> None:
    qkv = inputs(41, 2, 64)
    before = np.random.default_rng(3).standard_normal((40, 40)).astype(np.float32)
    alone, both = poisoned(40, 40), poisoned(40, 40)
    work = Workspace()
    for into, start in ((alone, None), (both, before)):
        parts = [Part(1, 1, into, start)]
        attention(qkv, poisoned(41, 128), parts, heads=2, scale=0.125, workspace=work, crew=crew)
    assert np.array_equal(both, before + alone)


def test_asking_for_no_part_changes_no_bit_of_the_attention(crew: Crew) -> None:
    qkv = inputs(50, 3, 64)
    with_mean, without = poisoned(50, 192), poisoned(50, 192)
    parts = [Part(0, 0, poisoned(50, 50))]
    attention(qkv, with_mean, parts, heads=3, scale=0.125, workspace=Workspace(), crew=crew)
    attention(qkv, without, heads=3, scale=0.125, workspace=Workspace(), crew=crew)
    assert np.array_equal(with_mean, without)


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_helpers_change_no_bit(crew: Crew, threads: int) -> None:
    qkv = inputs(150, 4, 32)
    found = []
    with Crew(threads) as several:
        for workers in (crew, several):
            out, mean = poisoned(150, 128), poisoned(150, 150)
            attention(qkv, out, [Part(0, 0, mean)], heads=4, scale=0.2, workspace=Workspace(), crew=workers)
            found.append((out, mean))
    assert np.array_equal(found[0][0], found[1][0])
    assert np.array_equal(found[0][1], found[1][1])


def test_what_an_image_leaves_in_the_workspace_does_not_reach_the_next(crew: Crew) -> None:
    work = Workspace()
    small = inputs(20, 2, 64)
    fresh, later = poisoned(20, 128), poisoned(20, 128)
    attention(small, fresh, heads=2, scale=0.125, workspace=Workspace(), crew=crew)
    attention(np.full((90, 384), np.nan, np.float32), poisoned(90, 128), heads=2, scale=0.125,
              workspace=work, crew=crew)  # fmt: skip
    attention(small, later, heads=2, scale=0.125, workspace=work, crew=crew)
    assert np.array_equal(fresh, later)


def test_large_logits_neither_overflow_nor_vanish(crew: Crew) -> None:
    """Thousands apart: one key takes all of a row, and far below zero none is lost."""
    qkv = inputs(40, 1, 64)
    qkv[:, :64] *= 100
    qkv[:, 64:128] = qkv[:, 64:128] * 10 - 50
    out, mean = poisoned(40, 64), poisoned(40, 40)
    attention(qkv, out, [Part(0, 0, mean)], heads=1, scale=0.125, workspace=Workspace(), crew=crew)
    assert np.isfinite(out).all()
    assert mean.max() == 1.0
    assert np.abs(mean.sum(axis=1) - 1).max() <= 1e-5


def test_what_is_not_a_number_shows(crew: Crew) -> None:
    """A mask made of a broken result would look like any other."""
    # with the fewest and with all of a fraction's bits set
    kinds = np.array([0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00001], np.uint32).view(np.float32)
    for place, kind in product((3, 64 + 3, 128 + 3), kinds):
        qkv = inputs(35, 1, 64)
        qkv[17, place] = kind
        out, mean = np.zeros((35, 64), np.float32), np.zeros((35, 35), np.float32)
        attention(qkv, out, [Part(0, 0, mean)], heads=1, scale=0.125, workspace=Workspace(), crew=crew)
        assert np.isnan(out[17]).any()


def test_no_byte_beyond_an_array_is_touched() -> None:
    """Every array ends where a page begins that nobody may read or write."""
    code = """
        import ctypes, mmap
        import numpy as np
        from wsss_rt.crew import Crew
        from wsss_rt.engines import amx
        from wsss_rt.engines.amx.attention import Part, Workspace, attention

        assert amx.refusal() is None
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

        def fenced(*shape):
            size = 4 * int(np.prod(shape))
            pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
            start = libc.mmap(None, pages + mmap.PAGESIZE, 3, 0x22, -1, 0)
            assert libc.mprotect(start + pages, mmap.PAGESIZE, 0) == 0
            raw = (ctypes.c_float * (size // 4)).from_address(start + pages - size)
            return np.frombuffer(raw, np.float32).reshape(shape)

        for tokens in (2, 17, 32, 47):
            qkv = fenced(tokens, 3 * 64)
            qkv[:] = np.random.default_rng(0).standard_normal(qkv.shape)
            part = Part(1, 1, fenced(tokens - 1, tokens - 1), fenced(tokens - 1, tokens - 1))
            with Crew(1) as crew:
                out, work = fenced(tokens, 64), Workspace()
                attention(qkv, out, [part], heads=1, scale=0.1, workspace=work, crew=crew)
        print("whole")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr


def test_who_waits_for_the_compiler_is_told(tmp_path: Path) -> None:
    """Once; the next process finds the kernels on the disk."""
    code = """
        from wsss_rt.engines import amx
        assert amx.refusal() is None
        from wsss_rt.engines.amx.attention import warm_up
        warm_up(print)
    """
    variables = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for lines in (1, 0):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=variables
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("compiling attention") == len(done.stdout.splitlines()) == lines


def test_warming_up_refuses_a_kernel_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from wsss_rt.engines.amx import attention as module

    warm_up()
    true = module.attend

    def half(*arguments: object) -> None:
        true(*arguments)
        out = arguments[11]
        assert isinstance(out, np.ndarray)
        out *= 0.5

    monkeypatch.setattr(module, "attend", half)
    with pytest.raises(RuntimeError, match="differs"):
        warm_up()
