"""The two sides of the comparison, each labelling a few photographs at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peer import Peer

    from wsss_rt.engines.base import Engine
    from wsss_rt.options import LabelOptions

Photographs = Sequence[tuple[Path, list[int]]]


@dataclass(frozen=True)
class Turn:
    """What one side took for its photographs.

    Attributes:
        seconds: wall time of all of them.
        processor_seconds: that all threads of this process worked meanwhile; a neighbour's load, which
            stretches wall time, changes it little.
        stages: milliseconds of every photograph, by stage.
        second_looks: photographs that ran again in float32.
    """

    seconds: float
    processor_seconds: float
    stages: list[dict[str, float]]
    second_looks: int = 0


@dataclass(frozen=True)
class OurSide:
    """``wsss-rt label`` with an engine that stays open."""

    engine: Engine
    model: Path
    tags: Path
    options: LabelOptions

    def label(self, photographs: Photographs, out: Path) -> Turn:
        """Label them into ``out/masks``."""
        from wsss_rt.io.manifest import Manifest
        from wsss_rt.label_plan import Job
        from wsss_rt.label_run import MANIFEST_NAME, label_folder
        from wsss_rt.second_look import NOTE

        job = Job(
            inputs=[str(path) for path, _ in photographs],
            out=out,
            model=self.model,
            tags=self.tags,
            formats=("png",),
            options=replace(self.options, precision=self.engine.precision),
            resume=False,
        )
        worked = time.process_time()
        done = label_folder(job, engine=self.engine)
        worked = time.process_time() - worked
        if done.labelled != len(photographs):
            raise SystemExit(f"labelled {done.labelled} of {len(photographs)}: {dict(done.errors)}")
        records = list(Manifest(out / MANIFEST_NAME).load())
        again = sum(NOTE in record["notes"] for record in records)
        return Turn(done.wall_seconds, worked, [dict(record["timings"]) for record in records], again)


@dataclass(frozen=True)
class PeerSide:
    """The peer, one photograph after the other."""

    peer: Peer
    background: float

    def label(self, photographs: Photographs, out: Path) -> Turn:
        """Label them into ``out/masks``."""
        from peer import label

        masks = out / "masks"
        masks.mkdir(parents=True, exist_ok=True)
        started, worked = time.perf_counter(), time.process_time()
        stages = [
            label(self.peer, path, present, masks / f"{path.stem}.png", self.background)
            for path, present in photographs
        ]
        return Turn(time.perf_counter() - started, time.process_time() - worked, stages)


Side = OurSide | PeerSide


def in_turn(sides: dict[str, Any], number: int) -> list[str]:
    """Names of the sides, each of them first in one turn after the other."""
    names = list(sides)
    start = number % len(names)
    return names[start:] + names[:start]
