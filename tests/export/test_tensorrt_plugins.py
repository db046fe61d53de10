"""Plugins for TensorRT: the graph that holds them, and what TensorRT, which is not here, would be told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tests.models.seeded import seeded_images, seeded_state
from wsss_rt.errors import WsssError
from wsss_rt.export.tensorrt_plugins import PLUGINS, build_plugin_graph, register_plugins, without_scratch
from wsss_rt.kernels import use_kernels
from wsss_rt.kernels._dispatch import as_plugins
from wsss_rt.kernels.affinity_propagate import affinity_propagate
from wsss_rt.training.models import create_model, load_official, official_shapes


def tiny() -> Any:
    model = create_model("mctformer-v2", num_classes=3, backbone="vit_test_tiny")
    load_official(model, seeded_state(official_shapes(model), 0.1))
    return model.eval()


def evaluators() -> list[type[OpRun]]:
    """Each node as the operator of the same name computes it."""

    def of(name: str, attributes: tuple[str, ...]) -> type[OpRun]:
        def run(self: Any, *tensors: np.ndarray[Any, Any], **settings: Any) -> tuple[Any, ...]:
            operator = getattr(torch.ops.wsss_rt, name)
            found = operator(*map(torch.from_numpy, tensors), *(settings[key] for key in attributes))
            return tuple(part.numpy() for part in (found if isinstance(found, tuple) else (found,)))

        return type(name, (OpRun,), {"op_domain": "wsss_rt", "_run": run})

    return [of(plugin.name, tuple(plugin.attributes)) for plugin in PLUGINS]


def test_a_graph_of_plugins_computes_the_models_maps() -> None:
    model = tiny()
    proto = onnx.load_from_string(build_plugin_graph(model, patch=model.patch_size))
    ours = [node for node in proto.graph.node if node.domain == "wsss_rt"]
    depth = len(list(model.blocks))
    assert Counter(node.op_type for node in ours) == {
        "attend_rows": depth,
        "average_rows": depth,
        "add_affinity": depth,
    }
    for node in ours:
        found = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        expected = next(plugin for plugin in PLUGINS if plugin.name == node.op_type)
        assert [name for name in found if name in expected.attributes] == list(expected.attributes)
        assert found["plugin_namespace"] == b"wsss_rt" and found["aot"] == 1
        assert len(node.input) == len(expected.inputs) and len(node.output) == len(expected.outputs)
    # a size that was not traced with
    images = seeded_images(0, 48, 64)
    scores, maps = ReferenceEvaluator(proto, new_ops=evaluators()).run(
        None, {proto.graph.input[0].name: images.numpy()}
    )
    with torch.no_grad(), use_kernels("reference"):
        plain = model.localize(images)
    torch.testing.assert_close(torch.from_numpy(scores), plain.scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.from_numpy(maps), plain.maps, rtol=1e-4, atol=1e-4)


def test_propagation_layer_by_layer_is_the_operators() -> None:
    torch.manual_seed(0)
    queries, keys = ([torch.randn(1, 2, 9, 16) for _ in range(3)] for _ in range(2))
    maps = torch.rand(1, 4, 7)
    with as_plugins():
        found = affinity_propagate(queries, keys, maps, 2)
    torch.testing.assert_close(found, affinity_propagate(queries, keys, maps, 2))


# kernels are compiled where Triton is not told to interpret them
_SCRIPT = """
import json, sys
from tests.export.tensorrt_fake import FakeTensorRT, SymInt32, TensorDesc
from wsss_rt.export.tensorrt_plugins import register_plugins
from wsss_rt.kernels import ahead_of_time
from wsss_rt.kernels._tiles import Tile
from wsss_rt.kernels.affinity_propagate import triton as propagate
from wsss_rt.kernels.attention_aggregate import triton as aggregate
import torch

fake = FakeTensorRT()
register_plugins(90, tensorrt=fake, plugin=fake)
D, C, M = 64, 20, 20
B, H, T, N = (SymInt32.named(name) for name in "BHTN")
half, line = "bfloat16", "float32"
heads = TensorDesc((B, H, T, D), half)
row = TensorDesc((B, H, T), line)
inputs = {
    "attend_rows": ([heads] * 3, (C, 0.125)),
    "average_rows": ([TensorDesc((B, H, C, N), line), TensorDesc((B, C, N), line)], (1.0,)),
    "add_affinity": ([heads, heads, row, row, TensorDesc((B, N, N), line)], (0.125, 1.0)),
    "propagate_layer": ([heads, heads, TensorDesc((B, M, N), line), TensorDesc((B, M, N), line)], (0.125,)),
}
shapes = [(64, 6, 216), (16, 6, 733), (4, 12, 2324), (1, 6, 9236)]
aggregate.tile_for = propagate.tile_for = lambda kernel, tensor: Tile(64, 32)
result = {}
for name, (tensors, settings) in inputs.items():
    identifier = f"wsss_rt::{name}"
    outputs = fake.described[identifier](*tensors, *settings)
    entry, ptx, launch, numbers = fake.implemented[identifier](*tensors, *settings, outputs, 0)
    rows = []
    for batch, head, tokens in shapes:
        sizes = dict(B=batch, H=head, T=tokens, N=tokens - C)
        rows.append(dict(
            grid=launch.grid_x.evaluate(sizes), block=launch.block_x.evaluate(sizes),
            shared=launch.shared_mem.evaluate(sizes), numbers=[n.evaluate(sizes) for n in numbers],
            outputs=[[size.evaluate(sizes) for size in output.shape_expr] for output in outputs],
            types=[output.dtype for output in outputs],
        ))
    result[name] = dict(entry=entry, ptx=ptx, rows=rows)
real = {}
for batch, head, tokens in shapes:
    q, k, v = torch.empty((3, batch, head, tokens, D), dtype=torch.bfloat16, device="meta")
    patches = tokens - C
    maps = [torch.empty((batch, rows, patches), device="meta") for rows in (C, patches)]
    made = ahead_of_time.launches_of(lambda: aggregate.launch(q, k, v, C, *maps, 1.0, 0.125), 90)
    made += ahead_of_time.launches_of(lambda: propagate.launch([q], [k], maps[0], C, 0.125), 90)
    for launch, name in zip(made, inputs, strict=True):
        real.setdefault(name, []).append(launch.grid[0])
print(json.dumps(dict(plugins=result, real=real)))
"""


@pytest.fixture(scope="module")
def told(root_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What TensorRT would be told of each plugin, and the grids of the operators' own launches."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], cwd=root_dir, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_launches_are_those_of_the_operators(told: dict[str, Any]) -> None:
    assert set(told["plugins"]) == set(told["real"]) == {plugin.name for plugin in PLUGINS}
    for name, plugin in told["plugins"].items():
        assert [row["grid"] for row in plugin["rows"]] == told["real"][name], name
        assert {row["block"] for row in plugin["rows"]} == {128}
        assert all(row["shared"] <= 48 * 1024 for row in plugin["rows"])
    first = {name: plugin["rows"][0] for name, plugin in told["plugins"].items()}
    assert first["attend_rows"]["outputs"] == [[64, 6, 216, 64], [64, 6, 216], [64, 6, 216], [64, 6, 20, 196]]
    assert first["attend_rows"]["types"] == ["bfloat16", "float32", "float32", "float32"]
    assert first["add_affinity"]["outputs"] == [[64, 196, 196]]
    # heads, tokens, class tokens, channels
    assert first["attend_rows"]["numbers"] == [6, 216]
    assert first["add_affinity"]["numbers"] == [6, 216, 20]
    # heads, patches, class tokens
    assert first["average_rows"]["numbers"] == [6, 196, 20]
    assert first["propagate_layer"]["numbers"] == [6, 216, 20, 20]


@pytest.mark.slow
def test_a_kernel_takes_what_tensorrt_passes_and_nothing_else(told: dict[str, Any], tmp_path: Path) -> None:
    triton = pytest.importorskip("triton")
    for name, plugin in told["plugins"].items():
        described = next(one for one in PLUGINS if one.name == name)
        head = plugin["ptx"].split(".entry", 1)[1].split(")", 1)[0]
        kinds = [line.split()[1] for line in head.splitlines() if ".param" in line]
        whole = len(plugin["rows"][0]["numbers"])
        expected = [".u64"] * len(described.inputs) + [".u32"] * whole + [".u64"] * len(described.outputs)
        assert kinds == expected, name
        assert f".entry {plugin['entry']}(" in plugin["ptx"] and ".target sm_90a" in plugin["ptx"]
        # the assembler takes it as it was changed
        source = tmp_path / f"{name}.ptx"
        source.write_text(plugin["ptx"])
        assembler = triton.knobs.nvidia.ptxas.path
        subprocess.run(
            [assembler, "--gpu-name", "sm_90a", str(source), "-o", str(tmp_path / "code")], check=True
        )


def test_scratch_memory_is_refused() -> None:
    head = ".visible .entry k(\n .param .u64 k_0,\n .param .u64 k_1,\n .param .u64 k_2\n)\n"
    used = head + "{ld.param.b64 %r, [k_2];}"
    with pytest.raises(WsssError, match="scratch memory"):
        without_scratch(used)
    assert "k_1" not in without_scratch(used.replace("[k_2]", "[k_0]"))


def test_without_tensorrt_the_error_says_what_to_install() -> None:
    if "tensorrt" in sys.modules:
        pytest.skip("TensorRT is here")
    with pytest.raises(WsssError, match=r"tensorrt 10\.7"):
        register_plugins(90)
