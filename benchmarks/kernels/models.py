"""Whole models on a GPU: with kernels and without, compiled, and in the engines that label photographs."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.kernels.sizes import CLASSES
from benchmarks.kernels.timing import measured, with_rates
from wsss_rt.kernels import last_path, use_kernels
from wsss_rt.training.cost import count, meta_model
from wsss_rt.training.models import create_model

METHODS = ("mctformer-v2", "token-refinement")
BACKBONES = ("deit_small_patch16_224", "vit_base_patch16_224")
SIDES = (224, 512, 1536)
BATCHES = (1, 8, 32, 64, 128)
# what the model is to reach of the card's own bf16 product
AIM = 0.4


def timings(repeat: int, ceiling: dict[str, float]) -> Iterator[tuple[str, dict[str, Any]]]:
    """``localize`` in bf16 of about sixteen images of 224 px, by kernels, by PyTorch, and compiled."""
    for backbone in BACKBONES:
        for method in METHODS:
            torch.manual_seed(0)
            model = create_model(method, num_classes=CLASSES, backbone=backbone).cuda().eval()
            for side in SIDES:
                batch = max(1, 16 * 224**2 // side**2)
                images = torch.randn(batch, 3, side, side, device="cuda")
                # compiling takes a minute a size
                compiled = method == METHODS[0] and backbone == BACKBONES[0] and side == SIDES[0]
                yield (
                    f"{method}, {backbone}, {side} px",
                    _model(
                        model, images, max(3, repeat // 10), ceiling, compiled, _macs(method, backbone, side)
                    ),
                )


@torch.no_grad()
def _model(
    model: Any, images: Tensor, repeat: int, ceiling: dict[str, float], compiled: bool, macs: int
) -> dict[str, Any]:
    flops = 2 * macs * images.shape[0]
    row: dict[str, Any] = {
        "batch": images.shape[0],
        "gflop_an_image": round(flops / images.shape[0] / 1e9, 2),
    }
    maps: dict[str, Tensor] = {}
    ways: dict[str, tuple[str, Callable[..., Any]]] = {
        "triton": ("triton", model.localize),
        "reference": ("reference", model.localize),
    }
    if compiled:
        ways["triton, compiled"] = ("triton", torch.compile(model.localize))
        ways["reference, compiled"] = ("reference", torch.compile(model.localize))
    for name, (mode, call) in ways.items():

        def run(mode: str = mode, call: Callable[..., Any] = call) -> Tensor:
            with use_kernels(mode), torch.autocast("cuda", torch.bfloat16):
                found: Tensor = call(images).maps
                return found

        row[name] = with_rates(measured(run, repeat), ceiling, flops=flops)
        if isinstance(row[name], dict):
            row[name]["path"] = last_path("attention_aggregate")
            maps[name] = run().float()
    with use_kernels("reference"):
        try:
            exact = model.localize(images).maps
        except torch.cuda.OutOfMemoryError:
            return row
    for name, found in maps.items():
        row[name]["maps_apart"] = float((found - exact).abs().max() / exact.abs().max())
    return row


def _macs(method: str, backbone: str, side: int) -> int:
    return count(meta_model(method, num_classes=CLASSES, backbone=backbone), (side, side)).total


def engine_timings(repeat: int, ceiling: dict[str, float]) -> Iterator[tuple[str, dict[str, Any]]]:
    """AOTInductor and ONNX Runtime on the GPU: latency at batch 1, throughput at the best batch.

    Host memory to host memory, as ``label`` calls them. bf16 for AOTInductor, float32 for ONNX Runtime.
    """
    from benchmarks.commands import wsss_rt
    from wsss_rt.engines import open_engine
    from wsss_rt.training.models import official_shapes

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        torch.manual_seed(0)
        model = create_model(METHODS[0], num_classes=CLASSES, img_size=224)
        macs = _macs(METHODS[0], BACKBONES[0], 224)
        shapes = official_shapes(model)
        generator = torch.Generator().manual_seed(0)
        state = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        torch.save(state, work / "seeded.pth")
        common = ("export", work / "seeded.pth", "--official", "--method", METHODS[0], "--classes", "voc")
        builds = {
            "aotinductor, bfloat16": (
                work / "model.pt2",
                ("--to", "aotinductor", "--device", "cuda", "--precision", "bfloat16"),
                "aotinductor",
            ),
            "onnxruntime": (work / "model.onnx", (), "onnxruntime"),
        }
        exact: Any = None
        for name, (path, options, backend) in builds.items():
            wsss_rt(*common, *options, "--out", path)
            engine = open_engine(path, backend=backend, device="cuda", cache=False, trial=False)
            row, exact = _engine(engine, macs, repeat, ceiling, exact)
            yield name, row
            engine.close()


def _engine(
    engine: Any, macs: int, repeat: int, ceiling: dict[str, float], exact: Any
) -> tuple[dict[str, Any], Any]:
    row: dict[str, Any] = {"precision": engine.precision, "batches": {}}
    random = np.random.default_rng(0)
    for batch in BATCHES:
        images = random.standard_normal((batch, 3, 224, 224), dtype=np.float32)
        try:
            for _ in range(3):
                found = engine.infer(images)
            times = []
            for _ in range(max(5, repeat // 5)):
                begun = time.perf_counter()
                engine.infer(images)
                times.append(1e3 * (time.perf_counter() - begun))
        except Exception as error:  # noqa: BLE001 - a batch that does not fit is a row, and its reason stands there
            row["batches"][batch] = f"{type(error).__name__}: {error}"[:300]
            break
        if batch == 1:
            first = found
        milliseconds = statistics.median(times)
        share = 2 * macs * batch / milliseconds / 1e9 / ceiling["tflops"] if ceiling.get("tflops") else None
        row["batches"][batch] = {
            "ms": round(milliseconds, 3),
            "images_s": round(1e3 * batch / milliseconds, 1),
            "share_of_bf16": None if share is None else round(share, 3),
        }
    rates = {batch: cell["images_s"] for batch, cell in row["batches"].items() if isinstance(cell, dict)}
    if rates:
        best = max(rates, key=lambda batch: rates[batch])
        row["latency_ms"] = row["batches"][1]["ms"]
        row["best_batch"], row["images_s"] = best, rates[best]
        if exact is not None:
            row["maps_apart"] = float(np.abs(first.maps - exact.maps).max() / np.abs(exact.maps).max())
        exact = first if exact is None else exact
    return row, exact
