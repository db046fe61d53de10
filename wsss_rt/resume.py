"""Which images of an earlier run need not be labelled again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_rt.errors import ImageError
from wsss_rt.io.decode import read_bytes
from wsss_rt.results import OK

if TYPE_CHECKING:
    from wsss_rt.io.sources import SourceImage


def is_done(
    record: Mapping[str, Any],
    source: SourceImage,
    *,
    out: Path,
    config_hash: str,
    tags: Sequence[str] | None,
    mask: str,
    files: Sequence[str],
) -> bool:
    """Whether a record of the manifest still tells the truth about an image and its files.

    Args:
        record: the image's last record.
        source: the image as it lies there now.
        out: the output folder.
        config_hash: of the present configuration.
        tags: the tags given now, in class order; None where tags are predicted.
        mask: path of the mask relative to ``out``.
        files: further keys of the record that name files which must exist.
    """
    if record.get("status") != OK or record.get("config") != config_hash or record.get("mask") != mask:
        return False
    if tags is not None and list(tags) != record.get("tags"):
        return False
    if not all(isinstance(record.get(key), str) and (out / record[key]).is_file() for key in files):
        return False
    return _same_input(record, source) and _sha256(out / mask) == record.get("mask_sha256")


def _same_input(record: Mapping[str, Any], source: SourceImage) -> bool:
    try:
        status = os.stat(source.path)
    except OSError:
        return False
    if status.st_size != record.get("input_bytes"):
        return False
    if status.st_mtime_ns == record.get("input_mtime_ns"):
        return True
    # touched or copied: the content decides
    return _sha256(source.path) == record.get("input_sha256")


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except ImageError:
        return None
