"""A node of ours in an ONNX graph, which TensorRT's parser hands to the plugin of that name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

#: Namespace of the plugins, and domain of their nodes.
NAMESPACE = "wsss_rt"


def plugin_node(
    name: str,
    inputs: Sequence[Tensor],
    attributes: Mapping[str, int | float],
    outputs: Sequence[tuple[torch.dtype, Sequence[int]]],
) -> Sequence[Tensor]:
    """Stand for a plugin while ``torch.onnx.export`` traces.

    Args:
        name: of the plugin.
        inputs: its tensors.
        attributes: its attributes, in the order of its registration.
        outputs: types and shapes of its outputs.
    """
    # read by TensorRT's ONNX parser: which registry entry, and its ahead-of-time form
    found: dict[str, Any] = {**attributes, "plugin_namespace": NAMESPACE, "plugin_version": "1", "aot": 1}
    return torch.onnx.ops.symbolic_multi_out(
        f"{NAMESPACE}::{name}",
        inputs,
        found,
        dtypes=[dtype for dtype, _ in outputs],
        shapes=[shape for _, shape in outputs],
        version=1,
    )
