"""Which part of an OpenVINO graph is attention with a mean over heads, as this project's exports build it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# (3, B, H, T, d) of (B, T, 3, H, d)
_HEADS_FIRST = [2, 0, 3, 1, 4]
_KEYS_LAST = [0, 1, 3, 2]
# of a slice that ends with its axis
_FAR = 2**31 - 1


@dataclass(frozen=True)
class Window:
    """A part of the head mean (B, T, T).

    Attributes:
        row, end: its rows, from the one up to the other; None where it ends with the mean.
        column: its first column.
        sums: whether an input of its shape is added to it.
    """

    row: int = 0
    end: int | None = None
    column: int = 0
    sums: bool = False


@dataclass(frozen=True)
class Attention:
    """Attention as a graph of plain operations has it.

    Attributes:
        qkv: (B, T, 3 * H * d).
        mixed: (B, T, H * d), what the projection reads.
        heads, width, scale: H, d, and of the logits.
        parts: what reads the head mean: windows, and the outputs that hold them.
    """

    qkv: Any
    mixed: Any
    heads: int
    width: int
    scale: float
    parts: tuple[tuple[Window, Any], ...]


def attention_around(softmax: Any) -> Attention | None:
    """The attention around a softmax, or None where anything in it is not as expected."""
    if len(sizes_of(softmax.output(0))) != 4:
        return None
    if softmax.get_attributes()["axis"] not in (-1, 3):
        return None
    logits = softmax.input_value(0).get_node()
    if logits.get_type_name() != "MatMul" or logits.get_attributes()["transpose_a"]:
        return None
    queries, scale = _unscaled(logits.input_value(0))
    keys, other = _unscaled(logits.input_value(1))
    if not logits.get_attributes()["transpose_b"]:
        if _order(keys) != _KEYS_LAST:
            return None
        keys, third = _unscaled(keys.get_node().input_value(0))
        other *= third
    products = [node for node in readers_of(softmax.output(0)) if node.get_type_name() == "MatMul"]
    if len(products) != 1 or any(products[0].get_attributes().values()):
        return None
    sources = [_third(part) for part in (queries, keys, products[0].input_value(1))]
    if [source and source[1] for source in sources] != [0, 1, 2]:
        return None
    origins = [source[0] for source in sources if source is not None]
    if any(origin.get_node() != origins[0].get_node() for origin in origins):
        return None
    qkv, mixed = origins[0].get_node().input_value(0), _merged(products[0].output(0))
    parts = _mean_parts(softmax, products[0])
    if mixed is None or parts is None:
        return None
    found = _heads(qkv, origins[0], mixed)
    return None if found is None else Attention(qkv, mixed, *found, scale * other, parts)


def _heads(qkv: Any, split: Any, mixed: Any) -> tuple[int, int] | None:
    """H and d; None where sizes show that images, tokens and channels are cut otherwise than by heads."""
    if qkv.get_element_type().get_type_name() != "f32":
        return None
    whole, cut, merged = sizes_of(qkv), sizes_of(split), sizes_of(mixed)
    if len(whole) != 3 or len(cut) != 5 or len(merged) != 3 or not whole[2] or not cut[3]:
        return None
    width, rest = divmod(whole[2], 3 * cut[3])
    # a graph may compute the width from the rest; then it has it from the same numbers
    if rest or cut[2] != 3 or cut[4] not in (None, width) or merged[2] != cut[3] * width:
        return None
    # one that is known and another that is not: a batch that became tokens
    return (cut[3], width) if whole[:2] == cut[:2] == merged[:2] else None


def _unscaled(output: Any) -> tuple[Any, float]:
    """What a number is multiplied with, and the number."""
    node = output.get_node()
    if node.get_type_name() == "Multiply":
        for index in (0, 1):
            factor = _constant(node.input_value(index))
            if factor is not None and factor.size == 1:
                return node.input_value(1 - index), float(factor.item())
    return output, 1.0


def _third(output: Any) -> tuple[Any, int] | None:
    """The (B, T, 3, H, d) of which this is queries, keys or values (B, H, T, d), and which of them."""
    node = output.get_node()
    if node.get_type_name() == "Squeeze":
        taken = node.input_value(0).get_node()
        limits = _limits(taken) if taken.get_type_name() == "Slice" else None
        if limits is None or limits[0] != 0 or limits[2] != limits[1] + 1:
            return None
        which, stacked = limits[1], taken.input_value(0)
    elif node.get_type_name() == "Gather":
        place, axis = _constant(node.input_value(1)), _constant(node.input_value(2))
        if place is None or axis is None or place.size != 1 or int(axis.item()) != 0:
            return None
        which, stacked = int(place.item()), node.input_value(0)
    else:
        return None
    if _order(stacked) != _HEADS_FIRST:
        return None
    split = stacked.get_node().input_value(0)
    return (split, which) if split.get_node().get_type_name() == "Reshape" else None


def _merged(output: Any) -> Any | None:
    """The (B, T, H * d) made of heads (B, H, T, d)."""
    readers = readers_of(output)
    if len(readers) != 1 or _order(readers[0].output(0)) != [0, 2, 1, 3]:
        return None
    readers = readers_of(readers[0].output(0))
    if len(readers) != 1 or readers[0].get_type_name() != "Reshape":
        return None
    return readers[0].output(0)


def _mean_parts(softmax: Any, product: Any) -> tuple[tuple[Window, Any], ...] | None:
    """Windows of the head mean that are read; None where none is, or anything else of the softmax.

    Attention alone, without its mean, OpenVINO runs as fast in a kernel of its own.
    """
    parts: list[tuple[Window, Any]] = []
    for reader in readers_of(softmax.output(0)):
        if reader == product:
            continue
        window = Window()
        if reader.get_type_name() == "Slice":
            limits, followers = _limits(reader), readers_of(reader.output(0))
            if limits is None or limits[:2] != (2, 0) or limits[2] < 0 or len(followers) != 1:
                return None
            window, reader = Window(end=None if limits[2] >= _FAR else limits[2]), followers[0]
        if reader.get_type_name() != "ReduceMean":
            return None
        axes = _constant(reader.input_value(1))
        if axes is None or axes.reshape(-1).tolist() != [1]:
            return None
        parts += _windows(reader.output(0), window)
    # readers come in no order; two is what the kernel writes
    parts.sort(key=lambda part: (part[0].row, part[0].column))
    return tuple(parts) if len(parts) in (1, 2) else None


def _windows(output: Any, window: Window) -> Iterator[tuple[Window, Any]]:
    """The smallest parts of the mean, and the outputs that hold them."""
    first = 2 if len(sizes_of(output)) == 4 else 1
    narrowed = []
    for reader in readers_of(output):
        found = _narrowed(reader, window, first)
        if found is None:
            yield window, output
            return
        narrowed.append((found, reader.output(0)))
    for found, part in narrowed:
        yield from _windows(part, found)


def _narrowed(reader: Any, window: Window, first: int) -> Window | None:
    """The window that a cut of the mean shows; ``first`` is the axis of its rows."""
    if reader.get_type_name() == "Gather" and first == 2:
        place, axis = _constant(reader.input_value(1)), _constant(reader.input_value(2))
        if place is None or axis is None or place.shape != () or place.any():
            return None
        return window if int(axis.item()) == 1 else None
    if reader.get_type_name() == "Squeeze" and first == 2 and reader.get_input_size() == 2:
        axes = _constant(reader.input_value(1))
        return window if axes is not None and axes.reshape(-1).tolist() == [1] else None
    limits = _limits(reader) if reader.get_type_name() == "Slice" else None
    if limits is None or limits[1] < 0:
        return None
    axis, start, stop = limits
    if axis == first + 1 and stop >= _FAR:
        return Window(window.row, window.end, window.column + start)
    if axis != first or stop < 0:
        return None
    end = window.end if stop >= _FAR else window.row + stop
    if window.end is not None and end is not None:
        end = min(end, window.end)
    return Window(window.row + start, end, window.column)


def _limits(node: Any) -> tuple[int, int, int] | None:
    """Axis, start and stop of a slice along one axis in steps of 1; its stop is far where the axis ends."""
    given = [_constant(node.input_value(index)) for index in range(1, node.get_input_size())]
    numbers = [int(value.item()) for value in given if value is not None and value.size == 1]
    if len(given) != 4 or len(numbers) != 4:
        return None
    start, stop, step, axis = numbers
    rank = len(sizes_of(node.output(0)))
    return (axis % rank, start, stop) if step == 1 and rank else None


def _order(output: Any) -> list[int] | None:
    """Of a transposition."""
    node = output.get_node()
    order = _constant(node.input_value(1)) if node.get_type_name() == "Transpose" else None
    return None if order is None else [int(place) for place in order]


def _constant(output: Any) -> Any | None:
    """What an output always is, as far as these graphs need it.

    Folding all that is constant would be simpler, and take a quantised model's weights out of eight bits.
    """
    node = output.get_node()
    if node.get_type_name() == "Broadcast":
        value = _constant(node.input_value(0))
        return value if value is not None and value.size == 1 else None
    return node.data if node.get_type_name() == "Constant" else None


def readers_of(output: Any) -> list[Any]:
    """The nodes that read an output, in no order."""
    return [reader.get_node() for reader in output.get_target_inputs()]


def sizes_of(output: Any) -> list[int | None]:
    """Of an output's axes, as far as they are known; empty where not even their number is."""
    shape = output.get_partial_shape()
    if shape.rank.is_dynamic:
        return []
    return [size.get_length() if size.is_static else None for size in shape]
