"""The plan of an artifact for this GPU: the cached one, or one built, compared with float32 and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_rt.engines import first_use
from wsss_rt.engines.compiled_cache import CompiledFile, Identity, compiled_folder, obtain
from wsss_rt.engines.private_folder import PrivateFolder
from wsss_rt.engines.tensorrt_profiles import Profile, default_profiles
from wsss_rt.errors import UsageError, WsssError

if TYPE_CHECKING:
    from wsss_rt.engines.base import Engine
    from wsss_rt.engines.cuda import Gpu
    from wsss_rt.engines.tensorrt import TensorRtEngine
    from wsss_rt.gate_images import GateImages
    from wsss_rt.model_card import ModelCard

PRECISIONS = ("float16", "bfloat16", "float32")
# what --precision auto tries, in this order, until one passes its parity check
AUTO = ("float16", "float32")

Tell = Callable[[str], None]
# a plan's bytes to its parity, with ``passed`` and ``summary``
Check = Callable[[bytes], Mapping[str, Any]]


def open_planned(
    card: ModelCard,
    artifact: bytes,
    *,
    precision: str,
    reference: Callable[[], Engine],
    images: Callable[[], GateImages],
    tell: Tell,
    gate: bool = True,
    profiles: tuple[Profile, ...] | None = None,
) -> TensorRtEngine:
    """The engine of an artifact on this GPU; builds its plan if there is none.

    Args:
        card: of the artifact.
        artifact: its bytes, whose seal was checked.
        precision: one of :data:`PRECISIONS`, or ``auto``: the first of :data:`AUTO` that passes.
        reference: opens float32 ONNX Runtime; only called where a plan was built.
        images: to compare on; likewise.
        tell: gets a line for whatever the user should know.
        gate: whether a plan is held against float32 when it was built. One that was not is kept apart from
            those that were.
        profiles: by default those of :func:`default_profiles`.

    Raises:
        UsageError: no GPU, no pycuda, no TensorRT; or a quantised artifact.
        WsssError: the build fails; code ``parity_failed`` where no precision passes.
    """
    from wsss_rt.engines.cuda import Gpu

    if card.precision == "int8":
        raise UsageError(
            "TensorRT plans are built from models in float32, and this one is quantised",
            fix="give the model that it was quantised from, with --precision float16",
        )
    gpu = Gpu()
    asked = AUTO if precision == "auto" else (precision,)
    for index, name in enumerate(asked):
        try:
            return _open_in(card, artifact, gpu, name, reference, images, tell, gate, profiles)
        except WsssError as error:
            if error.code != "parity_failed" or index + 1 == len(asked):
                raise
            tell(f"{error.what}; {asked[index + 1]} instead")
    raise AssertionError("no precision was asked for")


def _open_in(
    card: ModelCard,
    artifact: bytes,
    gpu: Gpu,
    precision: str,
    reference: Callable[[], Engine],
    images: Callable[[], GateImages],
    tell: Tell,
    gate: bool,
    profiles: tuple[Profile, ...] | None,
) -> TensorRtEngine:
    from wsss_rt.engines.tensorrt import TensorRtEngine

    def check(plan: bytes) -> Mapping[str, Any]:
        engine, exact = TensorRtEngine(card, plan, precision=precision, gpu=gpu), reference()
        try:
            return first_use.parity_result(first_use.compare_engines(exact, engine, images()))
        finally:
            exact.close()
            engine.close()

    def obtain_it() -> CompiledFile:
        return obtain_plan(
            card,
            artifact,
            gpu=gpu,
            precision=precision,
            tell=tell,
            check=check if gate else None,
            profiles=profiles,
        )

    found = obtain_it()
    try:
        engine = TensorRtEngine(card, found.data, precision=precision, gpu=gpu)
    except WsssError as error:
        if error.code != "engine_load" or found.built or found.path is None:
            raise
        # it was built by this version for this GPU, and something that nobody records has changed
        tell(f"the cached plan is built anew: {error}")
        found.path.unlink(missing_ok=True)
        found = obtain_it()
        engine = TensorRtEngine(card, found.data, precision=precision, gpu=gpu)
    engine.choice["parity"] = dict(found.parity) or "left to the caller"
    engine.choice["plan"] = {
        "file": None if found.path is None else str(found.path),
        "built": found.built,
        "gpu": gpu.name,
        "library": found.sidecar["identity"]["library"],
    }
    return engine


def identity(
    card: ModelCard,
    gpu: Gpu,
    version: str,
    precision: str,
    profiles: tuple[Profile, ...] | None = None,
    *,
    checked: bool = True,
) -> Identity:
    """What a plan is built from and for.

    Args:
        card: of the artifact.
        gpu: that it is built on.
        version: of TensorRT.
        precision: one of :data:`PRECISIONS`.
        profiles: by default those of :func:`default_profiles`.
        checked: whether it is compared with float32 when it was built.
    """
    shapes = {str(index): entry.as_dict() for index, entry in enumerate(profiles or default_profiles(card))}
    return Identity(
        artifact=card.weights_sha256,
        kind="tensorrt",
        library={"tensorrt": version},
        device={"name": gpu.name, "compute_capability": gpu.compute_capability},
        precision=precision,
        shapes=shapes,
        options={} if checked else {"parity": "left to the caller"},
    )


def obtain_plan(
    card: ModelCard,
    artifact: bytes,
    *,
    gpu: Gpu,
    precision: str,
    tell: Tell,
    check: Check | None,
    profiles: tuple[Profile, ...] | None = None,
) -> CompiledFile:
    """The plan for this GPU and this TensorRT, built if there is none.

    Args:
        card: of the artifact.
        artifact: its bytes, whose seal was checked.
        gpu: to build for.
        precision: one of :data:`PRECISIONS`.
        tell: gets a line for whatever the user should know.
        check: of a plan that was just built.
        profiles: by default those of :func:`default_profiles`.

    Raises:
        UsageError: TensorRT, or the packages that a build needs, are missing.
        WsssError: the build fails; code ``parity_failed`` where the check does not pass.
    """
    from wsss_rt.engines.tensorrt_library import library

    trt = library()
    version = str(trt.__version__)
    chosen = profiles or default_profiles(card)

    def build(path: Path) -> None:
        try:
            from wsss_rt.export.tensorrt import build_plan
        except ModuleNotFoundError as error:
            raise UsageError(
                f"building a TensorRT plan needs {error.name}, which is not installed",
                fix="pip install 'wsss-rt[tensorrt]'",
                code="missing_extra",
            ) from error
        name = f"timing-{version}-{gpu.name.replace(' ', '_').replace('/', '_')}.cache"
        with gpu.active():
            plan = build_plan(
                artifact,
                precision=precision,
                profiles=chosen,
                free_memory=gpu.free_memory(),
                timing_cache=_read(name),
                tell=tell,
            )
        _write(name, plan.timing_cache)
        path.write_bytes(plan.data)

    wanted = identity(card, gpu, version, precision, chosen, checked=check is not None)
    return obtain(wanted, build, check=check, tell=tell)


def _read(name: str) -> bytes:
    try:
        with PrivateFolder(compiled_folder()) as folder:
            return folder.read(name) or b""
    except WsssError:
        # what kernels took is measured again; obtain() says what is wrong with the folder
        return b""


def _write(name: str, data: bytes) -> None:
    try:
        with PrivateFolder(compiled_folder()) as folder:
            folder.write(name, data)
    except WsssError:
        # as above: it costs the next build some minutes and nothing else
        return
