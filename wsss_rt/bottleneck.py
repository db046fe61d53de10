"""Which stage holds up the others: the one that takes most of whatever is busiest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# who does what; stages of one row share its threads
RESOURCES: Mapping[str, tuple[str, ...]] = {
    "engine": ("infer",),
    "workers": ("read", "decode", "prepare", "localize", "refine", "decide", "encode"),
    "writers": ("write",),
}


@dataclass(frozen=True)
class Bottleneck:
    """What a run waited for.

    Attributes:
        stage: takes most of the time of ``resource``.
        resource: a key of :data:`RESOURCES`, the busiest one.
        busy: per resource, its stages' time over that of the run and of its threads; above 0.9 or so it is
            the limit, and where none is near 1 the threads waited for processors or for each other.
    """

    stage: str
    resource: str
    busy: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        busy = {name: round(share, 3) for name, share in self.busy.items()}
        return {"stage": self.stage, "resource": self.resource, "busy": busy}

    def __str__(self) -> str:
        return f"{self.stage} ({self.resource} {100 * self.busy[self.resource]:.0f} % busy)"


def find_bottleneck(
    milliseconds: Mapping[str, float], *, seconds: float, threads: Mapping[str, int]
) -> Bottleneck | None:
    """The bottleneck of a run; None where nothing was done.

    Args:
        milliseconds: per stage, of all images together; stages that no resource knows are left out.
        seconds: that the run took.
        threads: of each resource.
    """
    spent = {
        name: {stage: milliseconds[stage] for stage in stages if stage in milliseconds}
        for name, stages in RESOURCES.items()
    }
    busy = {
        name: sum(of_stage.values()) / (1e3 * seconds * threads[name]) if seconds > 0 else 0.0
        for name, of_stage in spent.items()
    }
    resource = max(busy, key=lambda name: busy[name])
    if not busy[resource]:
        return None
    return Bottleneck(max(spent[resource], key=lambda stage: spent[resource][stage]), resource, busy)
