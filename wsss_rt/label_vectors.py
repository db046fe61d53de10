"""Image labels from ``cls_labels.npy``, which is a pickle, without unpickling it.

The file of the weakly supervised literature holds a dictionary from image name to a 0/1 vector, saved by
numpy as an object. Unpickling a file that one was sent can run any code. The bytes are therefore walked
through instruction by instruction, and what they say is rebuilt here for the few instructions that such a
dictionary needs; nothing is imported, looked up or called by name, and anything else ends the reading.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsss_rt.errors import WsssError

# the labels of all of COCO take 60 MB
MAX_BYTES = 512 * 2**20
_NUMBERS = {"b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"}
_OBJECTS = {"O", "O4", "O8"}
_RECONSTRUCT, _ARRAY, _DTYPE, _ENCODE = "reconstruct", "ndarray", "dtype", "encode"
_KNOWN_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): _ARRAY,
    ("numpy", "dtype"): _DTYPE,
    # how Python 3 writes bytes for Python 2
    ("_codecs", "encode"): _ENCODE,
}
_IGNORED = {"PROTO", "FRAME"}
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_FRESH: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple,
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_REMEMBER, _RECALL = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}


@dataclass(frozen=True)
class _Name:
    """One of the known names; a word, with nothing behind it that could be called."""

    kind: str


@dataclass
class _Type:
    text: str


@dataclass
class _Array:
    shape: tuple[int, ...] | None = None
    values: list[Any] | NDArray[Any] = field(default_factory=list)


class _Unsafe(Exception):
    """An instruction or a name that labels do not need."""


def read_label_vectors(path: Path) -> dict[str, NDArray[np.float32]]:
    """Vectors of 0 and 1 by image name.

    Args:
        path: what ``numpy.save`` wrote of a dictionary from name to a vector of C numbers.

    Returns:
        Name to (C,) float32, in the file's order; C is the same for all.

    Raises:
        WsssError: too large, damaged, not such a dictionary, or it holds anything beyond one.
    """
    if path.stat().st_size > MAX_BYTES:
        raise _bad(path, f"it has more than {MAX_BYTES >> 20} MiB")
    data = BytesIO(path.read_bytes())
    try:
        version = np.lib.format.read_magic(data)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
        if header is None:
            raise ValueError(f"version {version} of the .npy format holds no labels")
        _, _, dtype = header(data)
        if dtype != np.dtype(object):
            raise ValueError(f"an array of {dtype} names no images")
        content = _rebuild(data)
    except _Unsafe as error:
        raise WsssError(
            f"refusing to read {path}",
            why=f"beside labels it holds {error}, and unpickling such a file can run any code",
            fix="where you trust it, load it yourself and save a CSV with the columns image and tags",
            code="unsafe_tags",
        ) from error
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, UnicodeError) as error:
        raise _bad(path, str(error)) from error
    if isinstance(content, _Array) and content.shape == () and len(content.values) == 1:
        content = content.values[0]
    if not isinstance(content, dict) or not content:
        raise _bad(path, "it holds no dictionary of image names")
    vectors = {name: _vector(path, name, value) for name, value in content.items()}
    lengths = {len(vector): name for name, vector in vectors.items()}
    if len(lengths) > 1:
        shown = ", ".join(f"{length} for {name}" for length, name in list(lengths.items())[:3])
        raise _bad(path, f"the vectors differ in length: {shown}")
    return vectors


def _vector(path: Path, name: str, value: Any) -> NDArray[np.float32]:
    numbers = value.values if isinstance(value, _Array) else None
    if not isinstance(numbers, np.ndarray) or value.shape != (len(numbers),):
        raise _bad(path, f"the labels of {name!r} are no vector of numbers")
    if not np.isin(numbers, (0, 1)).all():
        raise _bad(path, f"the labels of {name!r} are not all 0 or 1")
    return numbers.astype(np.float32)


def _rebuild(data: BytesIO) -> Any:
    """What the instructions describe, out of plain containers, :class:`_Array` and :class:`_Type`."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def after_mark() -> list[Any]:
        place = marks.pop()
        items = stack[place:]
        del stack[place:]
        return items

    for instruction, found, _ in pickletools.genops(data):
        name = instruction.name
        argument: Any = found
        if name in _IGNORED:
            continue
        if name == "STOP":
            return stack.pop()
        if name in _VALUES:
            stack.append(argument)
        elif name in _FRESH:
            stack.append(_FRESH[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(after_mark()))
        elif name in _TUPLES:
            items = stack[-_TUPLES[name] :]
            del stack[-_TUPLES[name] :]
            stack.append(tuple(items))
        elif name in ("DICT", "LIST"):
            items = after_mark()
            stack.append(items if name == "LIST" else _pairs(items))
        elif name in ("APPEND", "APPENDS"):
            items = after_mark() if name == "APPENDS" else [stack.pop()]
            _expect(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = after_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _expect(stack[-1], dict).update(_pairs(items))
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _REMEMBER:
            memo[argument] = stack[-1]
        elif name in _RECALL:
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_known(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            word, module = stack.pop(), stack.pop()
            stack.append(_known(module, word))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_made(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            _fill(stack[-1], state)
        else:
            raise _Unsafe(f"the pickle instruction {name}")
    raise ValueError("it ends in the middle")


def _pairs(items: list[Any]) -> dict[str, Any]:
    # nothing but text is hashed or printed: for tuples that hold each other both can take for ever
    return {_text(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _known(module: Any, word: Any) -> _Name:
    module, word = _expect(module, str), _expect(word, str)
    if (module, word) not in _KNOWN_NAMES:
        raise _Unsafe(f"the name {module}.{word}")
    return _Name(_KNOWN_NAMES[module, word])


def _made(function: Any, arguments: Any) -> Any:
    kind = _expect(function, _Name).kind
    arguments = _expect(arguments, tuple)
    if kind == _ENCODE and len(arguments) == 2 and _text(arguments[1]) in ("latin1", "latin-1"):
        return _expect(arguments[0], str).encode("latin-1")
    if kind == _RECONSTRUCT and arguments[:1] == (_Name(_ARRAY),):
        return _Array()
    if kind == _DTYPE and _text(arguments[0]) in _NUMBERS | _OBJECTS:
        return _Type(_text(arguments[0]))
    raise _Unsafe(f"a call of {kind} that labels do not need")


def _fill(target: Any, state: Any) -> None:
    if isinstance(target, _Type):
        order = _text(state[1])
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"unknown byte order {order!r}")
        if target.text in _NUMBERS and order in ("<", ">"):
            target.text = order + target.text
        return
    array = _expect(target, _Array)
    _, shape, kind, _, content = _expect(state, tuple)
    shape = tuple(_expect(size, int) for size in _expect(shape, tuple))
    text = _expect(kind, _Type).text
    if text in _OBJECTS:
        array.values = _expect(content, list)
    else:
        # Python 2 wrote bytes as text
        raw = content.encode("latin-1") if isinstance(content, str) else _expect(content, bytes)
        array.values = np.frombuffer(raw, np.dtype(text))
    if len(array.values) != prod(shape):
        raise ValueError(f"{len(array.values)} values do not fill the shape {shape}")
    array.shape = shape


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} stands where a {kind.__name__} belongs")
    return value


def _text(value: Any) -> str:
    text: str = value.decode("ascii") if isinstance(value, bytes) else _expect(value, str)
    return text


def _bad(path: Path, why: str) -> WsssError:
    return WsssError(
        f"cannot read tags from {path}",
        why=why,
        fix="expected is a dictionary from image name to a 0/1 vector; a CSV of image,tags does as well",
        code="bad_tags",
    )
