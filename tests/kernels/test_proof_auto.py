"""What ``auto`` makes of a proof, and what is said of it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from wsss_rt.kernels import _dispatch, _proven, last_path, standing
from wsss_rt.kernels._proven import DTYPES, Outcome, subjects
from wsss_rt.kernels.attention_aggregate import attention_aggregate
from wsss_rt.kernels.masked_reattention import masked_reattention, spread_mass
from wsss_rt.kernels.proof import UNCHECKED, ensure_proof, hindrance, summary
from wsss_rt.kernels.proof.rule import packed_heads

CPU = torch.device("cpu")
HERE = Path(__file__).parent
RIGHT, SLOWER = Outcome(True, "2.00 times"), Outcome(False, "slower: 0.80 times the reference's speed")

pytestmark = pytest.mark.usefixtures("fresh_proof")


class TestAuto:
    """What runs when nobody asks for anything."""

    @pytest.fixture(autouse=True)
    def no_process_starts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def never(*args: Any, **settings: Any) -> None:
            raise AssertionError("a dispatcher started a process")

        monkeypatch.setattr(subprocess, "Popen", never)

    def spread(self) -> str | None:
        mass = torch.rand(2, 9, generator=torch.Generator().manual_seed(0))
        spread_mass(mass, mass > 0.5, mass)
        return last_path("spread_mass")

    def test_it_follows_the_file(self, as_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.spread() == "reference"
        _proven.store(_proven.identity(CPU), {"spread_mass": RIGHT})
        # read once in a process: a model does not change its kernels in the middle
        assert self.spread() == "reference"
        _proven.forget()
        assert self.spread() == "triton[spread]"
        _proven.store(_proven.identity(CPU), {"spread_mass": SLOWER})
        _proven.forget()
        assert self.spread() == "reference"
        monkeypatch.setattr(_dispatch, "_on_gpu", lambda tensor: False)
        _proven.go_by(CPU, {"spread_mass": RIGHT})
        assert self.spread() == "reference"

    def test_each_type_has_a_proof_of_its_own(self, as_gpu: None) -> None:
        _proven.go_by(CPU, {"attention_aggregate bfloat16": RIGHT, "attention_aggregate float16": SLOWER})
        for dtype, path in zip(DTYPES, ("reference", "triton[attend]", "reference"), strict=True):
            attention_aggregate(*packed_heads(1, 1, 5, 32, dtype), 1)
            assert last_path("attention_aggregate") == path, dtype

    def test_tf32_was_not_proven(self, as_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
        _proven.go_by(CPU, {"attention_aggregate float32": RIGHT, "spread_mass": RIGHT})
        heads = packed_heads(1, 1, 5, 32, torch.float32)
        for precision, path in (("highest", "triton[attend]"), ("high", "reference")):
            monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda precision=precision: precision)
            attention_aggregate(*heads, 1)
            assert last_path("attention_aggregate") == path
        # it multiplies nothing
        assert self.spread() == "triton[spread]"

    def test_a_gradient_is_the_references(self, as_gpu: None) -> None:
        _proven.go_by(CPU, {"masked_reattention float32": RIGHT})
        q, k, v = packed_heads(1, 1, 5, 32, torch.float32)
        selected = torch.ones(1, 5, dtype=torch.bool)
        masked_reattention(q, k, v, selected, scale=0.2)
        assert last_path("masked_reattention") == "triton[reattend]"
        masked_reattention(q.clone().requires_grad_(), k, v, selected, scale=0.2)
        assert last_path("masked_reattention") == "reference"

    def test_a_compiled_model_asks_memory_alone(self, as_gpu: None) -> None:
        q, k, v = packed_heads(1, 1, 5, 32, torch.float32)
        selected = torch.ones(1, 5, dtype=torch.bool)
        _proven.store(_proven.identity(CPU), {"masked_reattention float32": RIGHT})
        torch._dynamo.reset()

        def call() -> torch.Tensor:
            return masked_reattention(q, k, v, selected, scale=0.2)

        compiled = torch.compile(call, fullgraph=True, backend="eager")
        compiled()
        assert last_path("masked_reattention") == "reference" and CPU not in _proven._taken
        _proven.recall(CPU)
        torch.testing.assert_close(compiled(), call())
        assert last_path("masked_reattention") == "triton[reattend]"

    def test_standing_says_what_runs_and_why(self, monkeypatch: pytest.MonkeyPatch, as_gpu: None) -> None:
        assert "a GPU, and this is a cpu" in standing("cpu")["random_walk"].reason
        assert hindrance(torch.device("cuda", 0)) is not None
        monkeypatch.setenv("WSSS_RT_KERNELS", "reference")
        assert standing("cpu")["random_walk"].reason == "WSSS_RT_KERNELS=reference asks for it"
        monkeypatch.delenv("WSSS_RT_KERNELS")
        monkeypatch.setattr("wsss_rt.kernels.proof.hindrance", lambda device: None)
        _proven.go_by(CPU, {"random_walk": RIGHT, "dense_crf": SLOWER})
        found = standing("cpu")
        assert list(found) == subjects() and found["map_planes"].reason == UNCHECKED
        assert (found["random_walk"].path, found["dense_crf"].path) == ("triton", "reference")
        assert found["dense_crf"].reason == SLOWER.reason
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
        _proven.go_by(CPU, {"attention_aggregate bfloat16": RIGHT, "attention_aggregate float32": RIGHT})
        typed = standing("cpu", subjects(["attention_aggregate"]))
        assert [entry.path for entry in typed.values()] == ["reference", "triton", "reference"]
        assert "TF32" in typed["attention_aggregate float32"].reason
        few = {name: found[name] for name in ("random_walk", "dense_crf")}
        assert summary(few) == f"1 of 2 kernels are taken; not dense_crf: {SLOWER.reason}"
        monkeypatch.setenv("WSSS_RT_KERNELS", "triton")
        assert standing("cpu")["dense_crf"].path == "triton"

    def test_nothing_is_checked_where_auto_does_not_choose(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[str] = []
        for device in ("cpu", "cuda", "cuda:1"):
            assert {entry.path for entry in ensure_proof(device, tell=told.append).values()} == {"reference"}
        monkeypatch.setattr("wsss_rt.kernels.proof.hindrance", lambda device: None)
        monkeypatch.setenv("WSSS_RT_KERNELS", "triton")
        assert {entry.path for entry in ensure_proof("cpu", tell=told.append).values()} == {"triton"}
        assert told == []
