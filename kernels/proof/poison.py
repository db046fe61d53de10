"""Memory whose content shows: an element that a kernel forgets to write is then seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

# torch lists its constructors when a device is first chosen by `with`, for the whole process: the list must
# hold the real ones, or `with torch.device(...)` does nothing in whatever comes later
with torch.device("meta"):
    torch.empty(0)

_CONSTRUCTORS = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (torch.Tensor, "new_empty"),
)
# of whole numbers, which have no NaN
_PATTERN = 85


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """New memory that Python asks torch for holds NaN, or 85 where it holds whole numbers."""

    def poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def new(*args: Any, **kwargs: Any) -> torch.Tensor:
            made = make(*args, **kwargs)
            if made.is_floating_point():
                return made.fill_(float("nan"))
            return made.fill_(_PATTERN if made.dtype != torch.bool else True)

        return new

    with ExitStack() as held:
        for owner, name in _CONSTRUCTORS:
            held.enter_context(patch.object(owner, name, poisoned(getattr(owner, name))))
        yield
