"""A model that is nothing but matrix products, so that every engine can be asked how fast it multiplies.

The file is written as protobuf, field by field: the runtime has no ONNX library, and the graph has four kinds
of node.
"""

from __future__ import annotations

import struct

import numpy as np

from wsss_rt.model_card import InputSpec, ModelCard, seal

ROWS, SIDE, CHAIN = 512, 1024, 6
# of one pass: three planes (ROWS, SIDE) go through CHAIN products with a matrix (SIDE, SIDE)
FLOPS = 2 * 3 * ROWS * SIDE * SIDE * CHAIN
_FLOAT, _POOL = 1, 16


def product_model() -> bytes:
    """An artifact whose input is (1, 3, ROWS, SIDE); :data:`FLOPS` is what a pass computes."""
    card = ModelCard(method="matrix-products", classes=("a", "b", "c"), input=InputSpec(patch=1))
    return seal(_model(), card)


def _model() -> bytes:
    # a matrix that keeps the size of what it multiplies, so that nothing overflows or becomes denormal
    weight = np.random.default_rng(0).standard_normal((SIDE, SIDE)) / np.sqrt(SIDE)
    names = ["images", *(f"product{index}" for index in range(CHAIN))]
    nodes = [
        *(_node("MatMul", [left, "weight"], right) for left, right in zip(names, names[1:], strict=False)),
        _node("GlobalMaxPool", [names[-1]], "peak"),
        _node("Flatten", ["peak"], "scores"),
        _node("MaxPool", [names[-1]], "maps", kernel_shape=(_POOL, _POOL), strides=(_POOL, _POOL)),
    ]
    graph = b"".join(
        [
            *(_bytes(1, node) for node in nodes),
            _bytes(2, b"matrix-products"),
            _bytes(5, _tensor("weight", weight.astype("<f4"))),
            _bytes(11, _value("images", ("batch", 3, "rows", SIDE))),
            _bytes(12, _value("scores", ("batch", 3))),
            _bytes(12, _value("maps", ("batch", 3, "map_rows", SIDE // _POOL))),
        ]
    )
    opset = _bytes(1, b"") + _number(2, 17)
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, opset)


def _node(operator: str, inputs: list[str], output: str, **attributes: tuple[int, ...]) -> bytes:
    """NodeProto: input 1, output 2, op_type 4, attribute 5."""
    parts = [_bytes(1, name.encode()) for name in inputs] + [_bytes(2, output.encode())]
    parts.append(_bytes(4, operator.encode()))
    for name, values in attributes.items():
        # AttributeProto: name 1, ints 8, type 20, where 7 is INTS
        numbers = b"".join(_number(8, value) for value in values)
        parts.append(_bytes(5, _bytes(1, name.encode()) + numbers + _number(20, 7)))
    return b"".join(parts)


def _tensor(name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    """TensorProto: dims 1, data_type 2, name 8, raw_data 9."""
    dims = b"".join(_number(1, side) for side in values.shape)
    return dims + _number(2, _FLOAT) + _bytes(8, name.encode()) + _bytes(9, values.tobytes())


def _value(name: str, shape: tuple[int | str, ...]) -> bytes:
    """ValueInfoProto: name 1, type 2 with tensor_type 1 of elem_type 1 and shape 2."""
    dims = b"".join(
        _bytes(1, _number(1, side) if isinstance(side, int) else _bytes(2, side.encode())) for side in shape
    )
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, _number(1, _FLOAT) + _bytes(2, dims)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += struct.pack("B", value & 0x7F | 0x80)
        value >>= 7
    return out + struct.pack("B", value)
