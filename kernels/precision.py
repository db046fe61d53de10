"""Parts of a model that stay in float32 whatever runs around them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """A context in which nothing on this device is cast to a lower precision.

    The meta device, on which a pass is counted without being computed, knows no such casts, and torch has no
    context for it.
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
