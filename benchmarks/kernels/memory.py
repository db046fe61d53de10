"""What an image of 1536 px needs: counted without a GPU, or measured on one."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.kernels.sizes import CLASSES
from benchmarks.kernels.timing import measured
from wsss_rt.kernels import use_kernels
from wsss_rt.kernels._launch import recording
from wsss_rt.training.cost import meta_model
from wsss_rt.training.models import create_model, fusion
from wsss_rt.training.models.attention import run_blocks

SIDE, METHOD, BACKBONE = 1536, "mctformer-v2", "deit_small_patch16_224"
# bytes: what the streaming form may take, and what holding all layers' attention must exceed
MOST, EAGER = 2e9, 24e9


class Held(TorchDispatchMode):
    """Counts the memory that is held while it is on, as an allocator would.

    Attributes:
        peak: the most bytes at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        torch.utils._pytree.tree_map_only(torch.Tensor, self._note, out)
        return out

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


@contextmanager
def form(name: str) -> Iterator[None]:
    """Models take this form of propagation, whatever the counts say."""
    kept = fusion.form_for
    fusion.form_for = lambda *args, **settings: name  # type: ignore[assignment,return-value]
    try:
        yield
    finally:
        fusion.form_for = kept


def count_held(work: Callable[[], Any]) -> int:
    """Bytes that a call holds at most, on the meta device; weights, made before, do not count."""
    with Held() as held, torch.no_grad():
        work()
    return held.peak


def counted(side: int = SIDE) -> dict[str, int]:
    """Bytes of one image on the meta device, with kernels in both forms, and with all attention in memory.

    The kernels' own scratch memory is counted: their host code runs, and their launches are left out.
    """
    from wsss_rt.kernels import affinity_propagate, attention_aggregate
    from wsss_rt.kernels.affinity_propagate import triton as propagate
    from wsss_rt.kernels.attention_aggregate import triton as aggregate

    model: Any = meta_model(METHOD, num_classes=CLASSES, backbone=BACKBONE)
    images = torch.empty(1, 3, side, side, device="meta")
    found = {}
    kept = aggregate.attention_aggregate, propagate.affinity_propagate
    choose = attention_aggregate.choose_triton, affinity_propagate.choose_triton
    aggregate.attention_aggregate = aggregate.launch  # type: ignore[assignment]
    propagate.affinity_propagate = propagate.launch  # type: ignore[assignment]
    for operator in (attention_aggregate, affinity_propagate):
        operator.choose_triton = lambda *args, **named: True
    try:
        for name in ("streaming", "accumulated"):
            with form(name), recording(lambda *launch: None):
                found[name] = count_held(lambda: model.localize(images))
    finally:
        aggregate.attention_aggregate, propagate.affinity_propagate = kept
        attention_aggregate.choose_triton, affinity_propagate.choose_triton = choose
    found["all attention held"] = count_held(lambda: _all_attention(model, images))
    return found


def timings(repeat: int, ceiling: dict[str, float]) -> Iterator[tuple[str, dict[str, Any]]]:
    """One image on the GPU, float32 and bf16, by both forms and by PyTorch."""
    torch.manual_seed(0)
    model = create_model(METHOD, num_classes=CLASSES, backbone=BACKBONE).cuda().eval()
    images = torch.randn(1, 3, SIDE, SIDE, device="cuda")
    maps: dict[str, torch.Tensor] = {}
    for dtype in (torch.bfloat16, torch.float32):
        for name in ("streaming", "accumulated", "reference"):

            def run(name: str = name, dtype: torch.dtype = dtype) -> torch.Tensor:
                mode = "reference" if name == "reference" else "triton"
                with (
                    torch.no_grad(),
                    form("accumulated" if mode == "reference" else name),
                    use_kernels(mode),
                    torch.autocast("cuda", dtype, enabled=dtype != torch.float32),
                ):
                    found: torch.Tensor = model.localize(images).maps
                    return found

            row = measured(run, 3)
            if isinstance(row, dict):
                row["within"] = row["peak_gib"] * 2**30 < MOST
                maps[name] = run().float()
                if name == "accumulated" and "streaming" in maps:
                    apart = (maps[name] - maps["streaming"]).abs().max() / maps[name].abs().max()
                    row["forms_apart"] = float(apart)
                if name == "reference" and "streaming" in maps:
                    apart = (maps[name] - maps["streaming"]).abs().max() / maps[name].abs().max()
                    row["streaming_apart"] = float(apart)
            yield f"{name}, {str(dtype).removeprefix('torch.')}", {"row": row}
    with torch.no_grad(), use_kernels("reference"):
        yield "all attention held, float32", {"row": measured(lambda: _all_attention(model, images), 1)}


def _all_attention(model: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """As official code does it: every layer's attention is kept, and maps are made of all of them."""
    embedded, _, _ = model._embed(images)
    attention: list[torch.Tensor] = []
    run_blocks(model.blocks, embedded, observe=lambda index, tokens, weights: attention.append(weights))
    return attention
