"""A run's worth of real results, written by the writers under test."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.samples import make_result
from wsss_rt.classes import SCENE_CLASSES, ClassSet
from wsss_rt.formats import open_writers
from wsss_rt.io.manifest import Manifest


@dataclass
class Run:
    """An output folder with its records and the results that went into it."""

    out: Path
    classes: ClassSet
    results: list[Any]

    def finish(self, formats: Sequence[str], *, context: dict[str, Any] | None = None) -> list[Path]:
        writers = open_writers(formats, self.out, self.classes, context=context or {})
        with Manifest(self.out / "manifest.jsonl") as manifest:
            for result in self.results:
                record = result.record()
                for writer in writers if result.error is None else ():
                    record.update(writer.add(result))
                manifest.append(record)
            return [path for writer in writers for path in writer.finish(manifest.load())]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Four images: plain, turned by EXIF with an ignored band, without classes, named in Latin-1."""
    names = ("a.jpg", "deep/b c.jpg", "deep/empty.jpg", os.fsdecode(b"caf\xe9.jpg"))
    results = [make_result(name, index) for index, name in enumerate(names)]
    results[1] = make_result(names[1], 1, orientation=6, ignore_rows=5)
    mask = results[2].mask
    assert mask is not None
    results[2] = make_result(names[2], 2, mask=np.zeros_like(mask), tags=(), flags=("no_class_found",))
    return Run(tmp_path / "out", ClassSet(SCENE_CLASSES), results)
