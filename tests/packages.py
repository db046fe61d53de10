"""Packages of compiled code for tests: one that holds no code, and one that does, compiled once."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

from tests.label_models import color_card
from wsss_rt.model_card import ModelCard
from wsss_rt.model_package import BuiltFor, seal_package

FOLDER = "data/aotinductor/model"


def built_here(**changes: Any) -> BuiltFor:
    """For this machine's processor, as export would say; needs torch."""
    from wsss_rt.engines.aotinductor import this_machine

    return BuiltFor(**({"device": "cpu", **this_machine("cpu")} | changes))


def bare_package(members: dict[str, bytes] | None = None) -> bytes:
    """What the compiler writes, without its code."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("model/archive_format", "pt2")
        archive.writestr(f"model/{FOLDER}/a.wrapper.so", b"\x7fELF and no more")
        archive.writestr(f"model/{FOLDER}/a.wrapper.cpp", b"// /home/someone/sources")
        for name, content in (members or {}).items():
            archive.writestr(f"model/{name}", content)
    return out.getvalue()


def write_package(
    path: Path, built_for: BuiltFor, *, card: ModelCard | None = None, members: dict[str, bytes] | None = None
) -> Path:
    """A sealed package without code: what is checked before the code is loaded can be tried on it."""
    path.write_bytes(seal_package(bare_package(members), card or color_card(), built_for))
    return path
