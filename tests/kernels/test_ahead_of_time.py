"""What can be known of compiled kernels without a GPU: that they compile, fit, and stay whole in graphs.

In processes of their own: there Triton compiles, where this suite interprets (``tests/conftest.py``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from wsss_rt.errors import WsssError
from wsss_rt.kernels import _tiles
from wsss_rt.kernels._tiles import Tile, for_architecture, remember, tile_for, use_tile
from wsss_rt.kernels.ahead_of_time import launches, launches_of, operators
from wsss_rt.kernels.attention_aggregate.cases import accumulators
from wsss_rt.kernels.proof.rule import packed_heads


def compiled(root: Path, cache: Path, *words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    done = subprocess.run([sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    return done.stdout


def test_every_operator_says_what_models_launch() -> None:
    found = list(launches(90))
    assert {launch.operator for launch in found} >= {
        "attention_aggregate",
        "affinity_propagate",
        "masked_reattention",
    }
    assert {launch.operator for launch in found} <= set(operators())
    for launch in found:
        assert set(launch.signature) == set(launch.kernel.arg_names)
        assert all(size > 0 for size in launch.grid)


def test_one_class_token_costs_a_launch_without_products() -> None:
    from wsss_rt.kernels.attention_aggregate.triton import EXAMPLES

    names = [launch.kernel.__name__ for launch in launches_of(EXAMPLES["bf16 d64, one class token"], 90)]
    assert names == ["_attend", "_average_rows"]
    only = launches_of(EXAMPLES["bf16 d64, affinity"], 90)
    assert [launch.kernel.__name__ for launch in only] == ["_attend", "_add_affinity"]
    assert only[0].constants["CLASS_ROWS"] is False


def test_interpreted_kernels_are_not_compiled() -> None:
    from wsss_rt.kernels.ahead_of_time import compile_launch

    if not _tiles.interpreting():
        pytest.skip("Triton compiles here")
    with pytest.raises(WsssError, match="TRITON_INTERPRET"):
        compile_launch(next(launches(90)), 90)


@pytest.mark.slow
def test_a_kernel_compiles_without_spilling(root_dir: Path, tmp_path: Path) -> None:
    """One kernel on one architecture; ``WSSS_RT_LARGE=1`` compiles all of them on two."""
    module, out = "wsss_rt.kernels.ahead_of_time", tmp_path / "code"
    words = ("-m", module, "--architectures", "90", "--only", "one class token", "--out", str(out))
    rows = [json.loads(line) for line in compiled(root_dir, tmp_path, *words).splitlines()]
    assert [row["kernel"] for row in rows] == ["_attend", "_average_rows"]
    assert all(row["fits"] and row["spilled"] == 0 and row["registers"] > 0 for row in rows)
    assert json.loads((out / "kernels.json").read_text()) == rows
    assert ".target sm_90a" in (out / "_attend-sm90-1.ptx").read_text()


@pytest.mark.large
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["80", "90"])
def test_all_kernels_compile_without_spilling(root_dir: Path, tmp_path: Path, architecture: str) -> None:
    words = ("-m", "wsss_rt.kernels.ahead_of_time", "--architectures", architecture)
    rows = [json.loads(line) for line in compiled(root_dir, tmp_path, *words).splitlines()]
    assert {row["operator"] for row in rows} == {launch.operator for launch in launches(90)}
    assert [row for row in rows if not row["fits"]] == []


_TRACED = """
import json, torch
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from wsss_rt.kernels import use_kernels
from wsss_rt.kernels.attention_aggregate import attention_aggregate
from wsss_rt.training.cost import meta_model

seen = []

def note(graph, examples):
    seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
    return graph.forward

def call(q, k, v, rows):
    return attention_aggregate(q, k, v, 3, rows), rows

model = meta_model("token-refinement", num_classes=5, backbone="vit_test_tiny")
with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), use_kernels("triton"):
    heads = torch.empty((3, 1, 2, 40, 64), device="cuda", dtype=torch.bfloat16)
    rows = torch.zeros(1, 3, 37, device="cuda")
    torch.compile(call, backend=aot_autograd(fw_compiler=note), fullgraph=True)(*heads, rows)
    model = model.to_empty(device="cuda")
    program = torch.export.export(model, (torch.empty(2, 3, 48, 64, device="cuda"),))
exported = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
print(json.dumps(dict(compiled=seen, exported=exported)))
"""


@pytest.mark.slow
def test_graphs_for_a_gpu_keep_the_kernels(root_dir: Path, tmp_path: Path) -> None:
    """``torch.compile`` sees each launch, and ``torch.export`` each operator, on fake tensors."""
    found: dict[str, Any] = json.loads(compiled(root_dir, tmp_path, "-c", _TRACED).splitlines()[-1])
    assert sum(name.startswith("triton_kernel_wrapper") for name in found["compiled"]) == 2
    assert not any("softmax" in name or "bmm" in name for name in found["compiled"])
    for operator in ("attention_aggregate", "select_tokens", "masked_reattention", "spread_mass"):
        assert f"wsss_rt.{operator}.default" in found["exported"]


@pytest.mark.parametrize(
    "operator", ["attention_aggregate", "affinity_propagate", "masked_reattention", "spread_mass"]
)
def test_operators_keep_torchs_rules(operator: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schema, mutation, fake results and autograd as torch checks them; tracing, where kernels can be."""
    monkeypatch.undo()
    from wsss_rt.kernels.affinity_propagate import triton as propagate
    from wsss_rt.kernels.attention_aggregate import triton as aggregate
    from wsss_rt.kernels.masked_reattention import triton as reattend

    q, k, v = packed_heads(1, 2, 9, 32, torch.float32, device=device)
    mass, selected = torch.rand(1, 9, device=device), torch.arange(9, device=device)[None] < 4
    calls: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "attention_aggregate": (
            aggregate.attention_aggregate,
            (q, k, v, 2, *accumulators(q, 2, (True, True)), 1.0, 0.2),
        ),
        "affinity_propagate": (
            propagate.affinity_propagate,
            ([q, k], [k, v], torch.rand(1, 3, 7, device=device), 2, 0.2),
        ),
        "masked_reattention": (reattend.masked_reattention, (q, k, v, selected, None, 0.2)),
        "spread_mass": (reattend.spread_mass, (mass, selected, mass, 1e-6)),
    }
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if device == "cuda":
        checks.append("test_aot_dispatch_dynamic")
    call, arguments = calls[operator]
    torch.library.opcheck(call, arguments, test_utils=tuple(checks))


def test_tuned_tiles_come_before_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = torch.empty(1, 2, 9, 64, dtype=torch.bfloat16)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_tiles, "interpreting", lambda: False)
    table = tile_for("attend", heads)
    monkeypatch.setattr(_tiles, "device_name", lambda tensor: "NVIDIA Test 1")
    path = remember("NVIDIA Test 1", "attend", 2, 64, Tile(32, 128, 2, 1))
    assert path.is_relative_to(tmp_path) and "NVIDIA-Test-1" in path.name
    assert tile_for("attend", heads) == Tile(32, 128, 2, 1) != table
    assert tile_for("attend", heads.float()) != Tile(32, 128, 2, 1)
    # a torn or foreign file is no tile
    path.write_text('{"attend-16bit-d64": {"lines": 3}}')
    _tiles._tuned.cache_clear()
    assert tile_for("attend", heads) == table
    with use_tile("attend", Tile(16, 16)):
        assert tile_for("attend", heads) == Tile(16, 16)
    with for_architecture(80):
        assert tile_for("attend", torch.empty(1, 1, 1, 128, dtype=torch.float16)).rows < table.rows
    _tiles._tuned.cache_clear()
