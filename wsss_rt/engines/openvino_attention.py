"""OpenVINO graphs whose attention runs in AMX tiles: the operator, and how it gets into a graph.

Only attention whose mean over heads is read, as localization maps need it: see ``amx/attention.py``.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as operations

from wsss_rt.crew import Crew
from wsss_rt.engines.amx.attention import HEAD_WIDTHS, Part, Workspace, attention
from wsss_rt.engines.attention_pattern import Window, attention_around, readers_of, sizes_of


class AttentionCrews:
    """What the attention of all layers works with: memory and helpers for each call that runs at once.

    Nothing of a thread: the library's threads are strangers to Python, which forgets what is theirs after
    every call.

    Args:
        threads: of one call.

    Attributes:
        operators: that work with it, in this graph and in what the library makes of it; as the library keeps
            no Python object alive, they have to be kept here.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._idle: list[tuple[Workspace, Crew]] = []
        self.operators: list[TileAttention] = []

    @contextmanager
    def lent(self) -> Iterator[tuple[Workspace, Crew]]:
        """For one call."""
        try:
            # atomic
            pair = self._idle.pop()
        except IndexError:
            pair = Workspace(), Crew(self._threads)
        try:
            yield pair
        finally:
            self._idle.append(pair)

    def close(self) -> None:
        """End all helpers, and let go of the operators; none may be at work."""
        self.operators.clear()
        while self._idle:
            self._idle.pop()[1].__exit__(None, None, None)


class TileAttention(openvino.Op):
    """(B, T, 3 * H * d) to attention (B, T, H * d), and the windows of its head mean, all float32.

    Further inputs are what windows with ``sums`` are added to, in their order: layers that add up their means
    so do without a pass of its own, and without the change of layout that OpenVINO puts before a sum.
    """

    def __init__(
        self,
        inputs: Sequence[Any],
        heads: int,
        scale: float,
        windows: tuple[Window, ...],
        crews: AttentionCrews,
    ) -> None:
        # the base would keep what it is given for ever, and with it the weights of all layers before
        super().__init__(weakref.proxy(self))
        # the base calls validate_and_infer_types, which needs these
        self._heads, self._scale, self._windows = heads, scale, windows
        # its operators go when it goes, as the collector does not see through them
        self._crews = weakref.ref(crews)
        crews.operators.append(self)
        self.set_arguments(list(inputs))
        self.constructor_validate_and_infer_types()

    def window_of(self, output: Any) -> Window | None:
        """What an output shows of this layer's head mean, be it added to others or not; None of attention."""
        index = output.get_index()
        return replace(self._windows[index - 1], sums=False) if index else None

    def validate_and_infer_types(self) -> None:
        """Shapes of the outputs."""
        batch, tokens, width = self.get_input_partial_shape(0)
        self.set_output_size(1 + len(self._windows))
        mixed = openvino.PartialShape([batch, tokens, width.get_length() // 3])
        self.set_output_type(0, openvino.Type.f32, mixed)
        for index, window in enumerate(self._windows):
            rows = _between(tokens, window.row, window.end)
            columns = _between(tokens, window.column, None)
            self.set_output_type(1 + index, openvino.Type.f32, openvino.PartialShape([batch, rows, columns]))

    def clone_with_new_inputs(self, inputs: Any) -> TileAttention:
        """The same on other inputs."""
        return TileAttention(inputs, self._heads, self._scale, self._windows, self._work())

    def _work(self) -> AttentionCrews:
        crews = self._crews()
        assert crews is not None
        return crews

    def has_evaluate(self) -> bool:
        """Yes: OpenVINO has no kernel of its own for it."""
        return True

    def evaluate(self, outputs: Any, inputs: Any) -> bool:
        """Run."""
        mixed, *found = (output.data for output in outputs)
        images, *given = (value.data for value in inputs)
        before = iter(given)
        added = [next(before) if window.sums else None for window in self._windows]
        if any(
            more is not None and more.shape != part.shape for part, more in zip(found, added, strict=True)
        ):
            raise RuntimeError("layers that add up their attention differ in their tokens")
        with self._work().lent() as (workspace, crew):
            for index, image in enumerate(images):
                parts = [
                    Part(window.row, window.column, part[index], None if value is None else value[index])
                    for window, part, value in zip(self._windows, found, added, strict=True)
                ]
                attention(
                    image,
                    mixed[index],
                    parts,
                    heads=self._heads,
                    scale=self._scale,
                    workspace=workspace,
                    crew=crew,
                )
        return True


def _between(tokens: Any, start: int, end: int | None) -> Any:
    """How many of so many tokens lie from ``start`` up to ``end``."""

    def of(count: int) -> int:
        return max(0, (count if end is None else min(end, count)) - start)

    if tokens.is_static:
        return openvino.Dimension(of(tokens.get_length()))
    if end is None:
        return openvino.Dimension()
    # fewer than the end where an image has so few tokens
    return openvino.Dimension(of(tokens.min_length), of(end))


def use_tiles(graph: Any, crews: AttentionCrews) -> list[TileAttention]:
    """Replace attention with a head mean in all layers that are built as this project's exports build them.

    Args:
        graph: is changed.
        crews: of the engine; neither closed nor gone before the graph and what is compiled of it are gone.

    Returns:
        What replaced it.
    """
    placed: list[TileAttention] = []
    for node in graph.get_ordered_ops():
        layer = attention_around(node) if node.get_type_name() == "Softmax" else None
        if layer is None or layer.width not in HEAD_WIDTHS:
            continue
        inputs, windows, outputs = [layer.qkv], [], []
        for window, output in layer.parts:
            summed = _summed(window, output, placed)
            if summed is not None:
                window, output = replace(window, sums=True), summed[1]
                inputs.append(summed[0])
            windows.append(window)
            outputs.append(output)
        tiles = TileAttention(inputs, layer.heads, layer.scale, tuple(windows), crews)
        _replace(layer.mixed, tiles.output(0))
        for index, output in enumerate(outputs):
            new = tiles.output(1 + index)
            if output.get_partial_shape().rank.get_length() == 4:
                new = operations.unsqueeze(new, np.array([1], np.int64)).output(0)
            _replace(output, new)
        placed.append(tiles)
    if placed:
        graph.validate_nodes_and_infer_types()
    return placed


def _summed(window: Window, output: Any, placed: Sequence[TileAttention]) -> tuple[Any, Any] | None:
    """The same window of an earlier layer, or its sum, where all that is done is to add both; and the sum."""
    readers = readers_of(output)
    if len(readers) != 1 or readers[0].get_type_name() != "Add":
        return None
    for index in (0, 1):
        before, own = readers[0].input_value(index), readers[0].input_value(1 - index)
        # others would be spread over each other; what only an image shows, the operator compares
        if own != output or len(sizes_of(before)) != len(sizes_of(own)):
            continue
        for earlier in placed:
            if earlier == before.get_node() and earlier.window_of(before) == window:
                return before, readers[0].output(0)
    return None


def _replace(old: Any, new: Any) -> None:
    for reader in list(old.get_target_inputs()):
        reader.replace_source_output(new)
