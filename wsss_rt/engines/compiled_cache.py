"""Compiled engines derived from an artifact, in the user's cache folder, each beside a JSON file of its own.

An engine file is machine code or deserialised into it. So everything that can be known about it is checked
before it is: that only this user could have written it, that its bytes are those that were written, and that
they were built for this artifact, library, device and precision. The hash finds files that were cut short or
changed; against this user's own account it is no defence, and nothing here could be.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from wsss_rt import __version__
from wsss_rt.engines.private_folder import PrivateFolder, UnsafeFolder
from wsss_rt.errors import WsssError
from wsss_rt.io.cache import cache_folder
from wsss_rt.io.names import printable

FORMAT = 1
# an engine of a large model takes that long to build
WAIT_SECONDS = 1800.0

SUFFIXES: Mapping[str, str] = {"tensorrt": ".plan", "aotinductor": ".pt2"}

Tell = Callable[[str], None]
Build = Callable[[Path], None]
Check = Callable[[bytes], Mapping[str, Any]]


@dataclass(frozen=True)
class Identity:
    """What an engine file was, or is to be, built from and for; all values are JSON.

    Attributes:
        artifact: SHA-256 of the artifact's graph and weights, ``card.weights_sha256``.
        kind: ``tensorrt``, ``aotinductor``: the backend's name.
        library: versions of what built it and must load it, by name.
        device: what it runs on: of a GPU ``name`` and ``compute_capability``; of a processor ``name`` and
            ``isa``, the instruction sets that matter.
        precision: what it computes in, e.g. ``float16``.
        shapes: the shape profile.
        options: whatever else changes the engine.
    """

    artifact: str
    kind: str
    library: Mapping[str, Any]
    device: Mapping[str, Any]
    precision: str
    shapes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As it stands in the JSON file: plain types, so that it compares with what is read back."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), sort_keys=True))
        return plain

    @property
    def slot(self) -> str:
        """Name without extension: everything but the library, whose upgrade replaces the file."""
        wanted = {key: value for key, value in self.as_dict().items() if key != "library"}
        digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
        return f"{self.kind}-{self.artifact[:12]}-{digest[:20]}"

    @property
    def file(self) -> str:
        """Name of the engine file."""
        return f"{self.slot}{SUFFIXES.get(self.kind, '.bin')}"

    def differences(self, stored: Any) -> list[str]:
        """What another identity (:meth:`as_dict`) has in place of this one's, in words."""
        return _differences(self.as_dict(), stored if isinstance(stored, dict) else {})


@dataclass(frozen=True)
class CompiledFile:
    """An engine file that was checked.

    Attributes:
        data: the very bytes that were checked; load these, not a path.
        parity: what ``check`` found when it was built.
        path: where it is kept; None where it could not be.
        built: whether this call built it.
        sidecar: the JSON beside it.
    """

    data: bytes
    parity: Mapping[str, Any]
    path: Path | None
    built: bool
    sidecar: Mapping[str, Any]


def compiled_folder() -> Path:
    """``compiled`` below the user's cache folder."""
    return cache_folder("compiled")


def obtain(
    identity: Identity,
    build: Build,
    *,
    check: Check | None = None,
    tell: Tell,
    folder: Path | None = None,
    wait_seconds: float = WAIT_SECONDS,
) -> CompiledFile:
    """The engine file of this identity: the cached one, or one built now and kept for the next time.

    Every reason not to use a cached file is told in one line, and it is then built once. While another
    process builds the same one, this waits and uses what that wrote. Where the cache folder cannot be used,
    the file is built all the same, and not kept.

    Args:
        identity: what to look for or build.
        build: writes the engine file under the path that it is given, in a private temporary folder.
        check: of the built bytes, before they are kept: a parity result with ``passed``, and a ``summary``
            for the message where that is False. A refusal is remembered too: building anew would only end
            in the same.
        tell: gets one line for whatever the user should know.
        folder: :func:`compiled_folder` by default.
        wait_seconds: for another process that builds the same engine; afterwards it is built here.

    Raises:
        WsssError: what ``build`` and ``check`` raise; code ``parity_failed`` where the check did not pass,
            now or when it was built.
    """
    with ExitStack() as held:
        store, reason = None, ""
        try:
            store = held.enter_context(PrivateFolder(folder or compiled_folder()))
            found, reason = _look_up(identity, store)
            if found is None:
                held.enter_context(
                    store.locked(
                        f"{identity.slot}.lock",
                        wait_seconds=wait_seconds,
                        waiting=lambda who: tell(
                            f"{who} is building the same {identity.kind} engine; waiting for it, "
                            f"{wait_seconds / 60:.0f} minutes at most"
                        ),
                    )
                )
                # whoever had the lock may have written it meanwhile
                found, reason = _look_up(identity, store)
        except WsssError as error:
            tell(f"a compiled engine can be neither kept nor taken from the cache: {error}")
            store, found, reason = None, None, "in a temporary folder, for this run alone"
        if found is None:
            tell(f"building the {identity.kind} engine ({identity.precision}, {_device(identity)}): {reason}")
            found = _make(identity, build, check)
            if store is not None:
                found = _keep(found, identity, store, tell)
    return _accepted(found)


def _look_up(identity: Identity, store: PrivateFolder) -> tuple[CompiledFile | None, str]:
    """The cached file, or why there is none to be used, in words."""
    name = f"{identity.slot}.json"
    try:
        raw = store.read(name)
        if raw is None:
            return None, _none_yet(identity, store)
        sidecar = json.loads(raw)
        stored, parity, size = sidecar["identity"], dict(sidecar["parity"]), sidecar["size"]
        if sidecar["format"] != FORMAT:
            return None, f"{name} has format {sidecar['format']}, and this wsss-rt writes {FORMAT}"
        if differing := identity.differences(stored):
            return None, f"the cached one has {'; '.join(differing)}"
        if parity.get("passed") is False:
            return CompiledFile(b"", parity, store.path / name, False, sidecar), ""
        data = store.read(identity.file)
    except UnsafeFolder as error:
        return None, f"the cached one is not loaded: {error.what}, {error.why}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, f"{name} in the cache is damaged"
    if data is None:
        return None, f"the file {identity.file} of the cached one is gone"
    if len(data) != size or hashlib.sha256(data).hexdigest() != sidecar["sha256"]:
        return None, (
            f"the cached one was changed or cut short ({len(data):,} of {size:,} bytes, and not the SHA-256 "
            "that was written beside it); it was not loaded"
        )
    return CompiledFile(data, parity, store.path / identity.file, False, sidecar), ""


def _none_yet(identity: Identity, store: PrivateFolder) -> str:
    """Why there is none in the slot: what the nearest engine of the same model has that this one has not."""
    nearest: list[str] | None = None
    for name in store.names():
        if not (name.startswith(f"{identity.kind}-{identity.artifact[:12]}-") and name.endswith(".json")):
            continue
        try:
            differing = identity.differences(json.loads(store.read(name) or b"")["identity"])
        except (WsssError, ValueError, KeyError, TypeError):
            # another slot's damage is told when that one is asked for
            continue
        if nearest is None or len(differing) < len(nearest):
            nearest = differing
    if nearest:
        return f"none is cached for this; the nearest has {'; '.join(nearest)}"
    return "the first one of this model here, kept for the next time"


def _make(identity: Identity, build: Build, check: Check | None) -> CompiledFile:
    with tempfile.TemporaryDirectory(prefix="wsss-rt-build-") as private:
        path = Path(private) / identity.file
        build(path)
        data = path.read_bytes()
    parity = dict(check(data)) if check is not None else {}
    refused = parity.get("passed") is False
    sidecar = {
        "format": FORMAT,
        "wsss_rt": __version__,
        "identity": identity.as_dict(),
        "file": None if refused else identity.file,
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
        "parity": parity,
    }
    return CompiledFile(b"" if refused else data, parity, None, True, sidecar)


def _keep(made: CompiledFile, identity: Identity, store: PrivateFolder, tell: Tell) -> CompiledFile:
    note = f"{identity.slot}.json"
    kept = identity.file if made.data else note
    try:
        # a reader between these two sees a hash that does not fit, and then waits for our lock
        if made.data:
            store.write(kept, made.data)
        store.write(note, json.dumps(made.sidecar, indent=1, sort_keys=True).encode())
    except WsssError as error:
        tell(f"the {identity.kind} engine cannot be kept, and the next run builds it again: {error}")
        return made
    return replace(made, path=store.path / kept)


def _accepted(found: CompiledFile) -> CompiledFile:
    if found.parity.get("passed") is not False:
        return found
    identity = found.sidecar["identity"]
    anew = "" if found.path is None else f"; to build and check it anew, delete {printable(found.path)}"
    raise WsssError(
        f"the {identity['kind']} engine in {identity['precision']} does not do what the model does here",
        why=str(found.parity.get("summary", "it failed the parity check")),
        fix=f"choose another --precision or --backend{anew}",
        code="parity_failed",
    )


def _device(identity: Identity) -> str:
    return str(identity.device.get("name", "this device"))


def _differences(wanted: Mapping[str, Any], stored: Mapping[str, Any], path: str = "") -> list[str]:
    found = []
    for key in sorted({*wanted, *stored}):
        name = f"{path} {key}".strip()
        ours, theirs = wanted.get(key), stored.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            found += _differences(ours, theirs, name)
        elif ours != theirs:
            found.append(f"{name} {_short(theirs)}, not {_short(ours)}")
    return found


def _short(value: Any) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
