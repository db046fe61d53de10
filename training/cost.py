"""What a model costs: multiply-accumulates by layer, by the counting rules of fvcore.

A multiply-accumulate counts as one, in convolutions, linear layers and matrix products, attention's among
them. Norms with weights count 5 for each element (batch norm at rest 2), bilinear resizing 4 for each
output element. Softmax, activations, additions and sigmoid count nothing. Published "GFLOPs" of SegViT and of
most vision papers are these; floating-point operations are about twice as many.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# what a model does with its layers' results
OUTPUTS = "(outputs)"
_NORM, _NORM_AT_REST, _BILINEAR = 5, 2, 4


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of one pass.

    Attributes:
        layers: by layer, in order of their first operation; ``(outputs)`` is what stands outside of all.
        kinds: by kind of operation: ``products``, ``norms``, ``resizing``.
        size: (H, W) of the image, pixels.
        parameters: of the whole model.
    """

    layers: Mapping[str, int]
    kinds: Mapping[str, int]
    size: tuple[int, int]
    parameters: int

    @property
    def total(self) -> int:
        """Of all layers."""
        return sum(self.layers.values())


def meta_model(method: str, *, num_classes: int, **arguments: Any) -> nn.Module:
    """A model without weights, in eval mode: it takes no memory and can be counted, not run.

    Args:
        method: name as in ``create_model``.
        num_classes: C.
        arguments: of ``create_model``; weights to start from are left out.

    Raises:
        UsageError: what ``create_model`` refuses.
    """
    from wsss_rt.training.models import create_model

    arguments = {**arguments, "pretrained": False}
    with torch.device("meta"):
        model: nn.Module = create_model(method, num_classes=num_classes, **arguments)
    return model.eval()


def count(model: nn.Module, size: tuple[int, int]) -> Cost:
    """Count one pass of one image through ``forward``.

    Args:
        model: on any device; ``meta`` computes nothing.
        size: (H, W), pixels.
    """
    device = next(model.parameters()).device
    counter = _Counter()
    with torch.no_grad(), counter.watching(model), counter:
        model(torch.zeros(1, 3, *size, device=device))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(counter.layers, counter.kinds, size, parameters)


@torch.no_grad()
def measure(models: Sequence[nn.Module], size: tuple[int, int], *, runs: int) -> list[float]:
    """Median seconds of a pass of one image, float32, on the models' device.

    The models take turns, so that a neighbour's burst of load falls on all of them; one pass each warms up.

    Args:
        models: in eval mode.
        size: (H, W), pixels.
        runs: timed passes of each.
    """
    device = next(models[0].parameters()).device
    image = torch.randn(1, 3, *size, device=device)
    seconds: list[list[float]] = [[] for _ in models]
    for turn in range(runs + 1):
        for model, own in zip(models, seconds, strict=True):
            started = time.perf_counter()
            model(image)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                own.append(time.perf_counter() - started)
    return [median(own) for own in seconds]


@dataclass
class _Place:
    """Where in the model an operation happens.

    Attributes:
        open: names of the modules that are running, outermost first; the model itself is ``""``.
        closed: the module that ended last.
    """

    open: list[str] = field(default_factory=list)
    closed: str = ""

    def layer(self) -> str:
        """Name of the layer, cut behind its first number: ``decode_head.decoder_1.layers.0``."""
        name = self.open[-1] if self.open else ""
        if not name and (".attn." in self.closed or self.closed.endswith(".norm1")):
            # methods run attention's products themselves, behind a block's norm and between its projections
            name = self.closed
        parts = name.split(".")
        numbers = [index for index, part in enumerate(parts) if part.isdigit()]
        return ".".join(parts[: numbers[0] + 1] if numbers else parts[:2]) or OUTPUTS


class _Counter(TorchDispatchMode):
    """Sees every operation below autograd, with its shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: dict[str, int] = {}
        self.kinds: dict[str, int] = {"products": 0, "norms": 0, "resizing": 0}
        self._place = _Place()

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Follow which module runs."""
        place = self._place
        handles = []
        for name, module in model.named_modules():

            def enter(*_: Any, name: str = name) -> None:
                place.open.append(name)

            def leave(*_: Any) -> None:
                place.closed = place.open.pop()

            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet not in flop_registry:
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        out = func(*args, **kwargs)
        kind, amount = _amount(packet, args, kwargs, out)
        if amount:
            layer = self._place.layer()
            self.layers[layer] = self.layers.get(layer, 0) + amount
            self.kinds[kind] += amount
        return out


def _amount(packet: Any, args: Any, kwargs: Any, out: Any) -> tuple[str, int]:
    """Kind and multiply-accumulates of one operation."""
    aten = torch.ops.aten
    if packet in flop_registry:
        # torch counts a multiplication and an addition as two
        return "products", flop_registry[packet](*args, **kwargs, out_val=out) // 2
    if packet in (aten.native_layer_norm, aten.native_group_norm):
        return "norms", _NORM * args[0].numel()
    if packet in (aten.native_batch_norm, aten._native_batch_norm_legit_no_training):
        return "norms", _NORM_AT_REST * args[0].numel()
    if packet is aten.upsample_bilinear2d:
        return "resizing", _BILINEAR * prod(out.shape)
    return "", 0
