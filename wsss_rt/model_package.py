"""AOTInductor packages as artifacts: the card and the machine they were built for, inside the zip, sealed.

A package is machine code. It is read here without torch and before torch sees it: the seal first, then the
names of its members (one that holds a pickle is refused), then what it was built for. The card is the member
``extra/wsss_rt.json``; the zip's comment, the last bytes of the file, holds the SHA-256 of all before it.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from wsss_rt.errors import WsssError
from wsss_rt.model_card import ModelCard, broken_seal

MEMBER = "extra/wsss_rt.json"
_SEAL = b"wsss_rt_sha256="
_SEAL_LENGTH = len(_SEAL) + 64
# what the loader reads, below the archive's own folder; programs, weights and constants would be unpickled
_KEPT_FOLDERS = ("data/aotinductor/",)
_KEPT_FILES = (
    "archive_format",
    "archive_version",
    "byteorder",
    ".data/version",
    ".data/serialization_id",
    MEMBER,
)
_MEMBER_LIMIT = 64 << 20


@dataclass(frozen=True)
class BuiltFor:
    """The kind of machine that a package's code runs on.

    Attributes:
        device: ``cpu`` or ``cuda``.
        torch: version that built it; its libraries are linked by name.
        platform: operating system and processor architecture, e.g. ``linux x86_64``.
        name: of the device, for people.
        isa: of a processor: the instruction sets that the code uses, as torch names them.
        compute_capability: of a GPU, e.g. ``9.0``.
        precision: what it computes in.
        kernels: whether Triton kernels of this project are inside.
        weights: SHA-256 of the float32 weights that it was compiled from.
    """

    device: str
    torch: str
    platform: str
    name: str
    isa: tuple[str, ...] = ()
    compute_capability: str = ""
    precision: str = "float32"
    kernels: bool = False
    weights: str = ""


def seal_package(package: bytes, card: ModelCard, built_for: BuiltFor) -> bytes:
    """A package with its card, what it was built for, and its seal; sources of the code are left out.

    Args:
        package: as ``torch._inductor.aoti_compile_and_package`` wrote it.
        card: its ``weights_sha256`` becomes the hash of the code and weights.
        built_for: see :class:`BuiltFor`.
    """
    out = io.BytesIO()
    digest = hashlib.sha256()
    with zipfile.ZipFile(io.BytesIO(package)) as source, zipfile.ZipFile(out, "w") as target:
        folder = source.namelist()[0].split("/", 1)[0]
        for entry in source.infolist():
            # generated sources tell of the folders of the machine, and nothing reads them
            if entry.filename.endswith((".cpp", ".h", f"/{MEMBER}")):
                continue
            data = source.read(entry)
            digest.update(f"{entry.filename.split('/', 1)[1]} {len(data)}\n".encode() + data)
            target.writestr(zipfile.ZipInfo(entry.filename), data)
        fields = {"card": json.loads(replace(card, weights_sha256=digest.hexdigest()).to_json())}
        text = json.dumps(fields | {"built_for": asdict(built_for)}, sort_keys=True, ensure_ascii=False)
        target.writestr(zipfile.ZipInfo(f"{folder}/{MEMBER}"), text)
        target.comment = _SEAL + b"0" * 64
    body = out.getvalue()[:-_SEAL_LENGTH]
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode()


def read_package(data: bytes, source: str) -> tuple[ModelCard, BuiltFor]:
    """Card and machine of a package whose seal is intact.

    Args:
        data: the whole file.
        source: what to name in errors.

    Raises:
        WsssError: code ``no_card``, ``model_damaged``, ``bad_card`` or ``unsafe_package``.
    """
    body, tail = data[:-_SEAL_LENGTH], data[-_SEAL_LENGTH:]
    if tail != _SEAL + hashlib.sha256(body).hexdigest().encode():
        raise broken_seal(source, has_card=MEMBER.encode() in data, writer="wsss-rt export --to aotinductor")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            folder = names[0].split("/", 1)[0]
            _check_members(names, folder, source)
            if archive.getinfo(f"{folder}/{MEMBER}").file_size > _MEMBER_LIMIT:
                raise ValueError("its card is too long")
            fields: Mapping[str, Any] = json.loads(archive.read(f"{folder}/{MEMBER}"))
        built = dict(fields["built_for"])
        built_for = BuiltFor(**built | {"isa": tuple(built["isa"])})
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, IndexError) as error:
        raise WsssError(
            f"{source} holds a card that cannot be read", why=str(error), code="bad_card"
        ) from error
    return ModelCard.from_json(json.dumps(fields["card"]), source=source), built_for


def _check_members(names: list[str], folder: str, source: str) -> None:
    for name in names:
        inside = name.removeprefix(f"{folder}/")
        known = inside in _KEPT_FILES or (inside.startswith(_KEPT_FOLDERS) and ".." not in inside.split("/"))
        if not known or inside == name:
            raise WsssError(
                f"{source} holds {name!r}, which no package of wsss-rt does",
                why="loading it could run more than the model",
                fix="write the package with `wsss-rt export --to aotinductor`",
                code="unsafe_package",
            )
