"""A trained model to an AOTInductor package: compiled for this kind of machine, written only after the gate.

AOTInductor compiles PyTorch's own program and not ONNX, so a package comes from a run, beside the ONNX file
and through the same gate, with the same card inside.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from wsss_rt.engines.aotinductor import AotInductorEngine, this_machine
from wsss_rt.engines.base import EngineOutput
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.export.graph import quiet
from wsss_rt.export.onnx import ExportReport, gate_against, make_card
from wsss_rt.io.atomic import write_atomic
from wsss_rt.kernels import ensure_proof, use_kernels
from wsss_rt.kernels.proof import subjects
from wsss_rt.model_package import BuiltFor, read_package, seal_package
from wsss_rt.parity import ParityError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.training.checkpoints import RunConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export_aotinductor(
    model: nn.Module,
    config: RunConfig,
    out: str | Path,
    *,
    images: Path | None = None,
    precision: str = "float32",
    device: str = "cpu",
    kernels: str = "auto",
    gate: bool = True,
) -> ExportReport:
    """Compile a model to a package for this machine's kind.

    Args:
        model: as ``load_run`` gives it.
        config: what the card will say.
        out: the file; nothing appears under this name unless the gate passes.
        images: folder with images for the gate; None generates scenes.
        precision: of matrix products and convolutions: ``float32``, ``bfloat16`` or ``float16``. Softmax and,
            on a GPU, norms stay in float32, as in PyTorch's autocast; so do inputs and outputs.
        device: ``cpu`` or ``cuda``.
        kernels: for ``cuda``, as ``WSSS_RT_KERNELS``: ``auto`` compiles those of this project's kernels in
            that are proven on this GPU, and checks first what was not yet checked. On a CPU the reference is
            compiled.
        gate: False skips the parity check, and the card says so.

    Raises:
        UsageError: no such precision, or no GPU for ``cuda``.
        ParityError: the package's result is not the model's; nothing was written.
        WsssError: code ``compiler_missing``, or ``export_failed``: it cannot be traced or compiled.
    """
    if precision not in DTYPES:
        raise UsageError(
            f"AOTInductor does not compile to {precision}", fix=f"use one of {', '.join(DTYPES)}"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("no GPU to compile for", why="torch sees none", fix="use --device cpu")
    check_compiler()
    started = time.perf_counter()
    model = model.eval().float().cpu()
    card = replace(make_card(model, config), precision=precision)
    weights = _weights_hash(model)
    if device == "cuda" and kernels == "auto":
        ensure_proof("cuda", subjects(getattr(model, "operators", ()), (DTYPES[precision], torch.float32)))
    compiled, uses_kernels = _compile(
        model, patch=card.input.patch, precision=precision, device=device, kernels=kernels
    )
    built_for = BuiltFor(
        device=device,
        precision=precision,
        isa=_instruction_sets(compiled),
        kernels=uses_kernels,
        weights=weights,
        **this_machine(device),
    )
    data = seal_package(compiled, card, built_for)
    gate_started = time.perf_counter()
    parity = None
    if gate:
        card, built_for = read_package(data, Path(out).name)
        engine = _InPairs(AotInductorEngine(card, data, built_for, source=Path(out).name))
        name = f"aotinductor {built_for.torch} {device}"
        try:
            parity = gate_against(model.cpu(), {name: engine}, {}, card, images, precision)
        finally:
            engine.close()
        if not parity.passed:
            raise ParityError(parity)
    gate_seconds = time.perf_counter() - gate_started
    result: Any = parity.as_dict() if parity is not None else "skipped"
    card = replace(card, quality={**card.quality, "parity": result})
    data = seal_package(data, card, built_for)
    write_atomic(out, data)
    return ExportReport(Path(out), len(data), None, time.perf_counter() - started, gate_seconds, card, parity)


def check_compiler() -> None:
    """Refuse at once what would fail after a minute.

    Raises:
        WsssError: code ``compiler_missing``.
    """
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        raise WsssError(
            "AOTInductor needs a C++ compiler",
            why=f"there is no {compiler} on the PATH",
            fix="install g++ (apt-get install g++), or name another one in CXX",
            code="compiler_missing",
        )


class _InPrecision(nn.Module):
    """The model under autocast, with float32 outputs."""

    def __init__(self, model: nn.Module, precision: str, device: str) -> None:
        super().__init__()
        self.model, self._device, self._dtype = model, device, DTYPES[precision]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        lower = self._dtype != torch.float32
        # a cache of cast weights would hide that they are constants
        with torch.autocast(self._device, self._dtype, cache_enabled=False) if lower else nullcontext():
            outputs = self.model(images)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        return tuple(output.float() for output in outputs)


class _InPairs:
    """An engine whose images run beside their mirror images: a package must be right in batches as well."""

    def __init__(self, engine: AotInductorEngine) -> None:
        self._engine, self.backend = engine, engine.backend

    def run(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        pair = np.concatenate([images, images[..., ::-1]])
        return tuple(output[:1] for output in self._engine.run(pair))

    def infer(self, images: NDArray[np.float32]) -> EngineOutput:
        return EngineOutput(*self.run(images))

    def close(self) -> None:
        self._engine.close()


def _compile(
    model: nn.Module, *, patch: int, precision: str, device: str, kernels: str
) -> tuple[bytes, bool]:
    """The package's bytes, and whether this project's Triton kernels are in it."""
    dynamic = torch.export.Dim.DYNAMIC
    # neither square nor a multiple of the patch, and no batch of one: such sizes would be baked in
    example = torch.zeros(2, 3, 5 * patch + patch // 2, 7 * patch + 1, device=device)
    folded = getattr(model, "constants_folded", nullcontext)
    options: dict[str, Any] = {
        # weights that autocast casts are cast once, when the package is loaded
        "aot_inductor.use_runtime_constant_folding": precision != "float32",
        # as many as the engine is given, and not as many as this machine has
        "cpp.dynamic_threads": True,
        # a hundred megabytes and half a minute, to save seconds in the next export
        "aot_inductor.precompile_headers": False,
        # line numbers of generated code, under the names of this machine's folders
        "aot_inductor.enable_line_tables": False,
    }
    with _private_cache(), tempfile.TemporaryDirectory(prefix="wsss-rt-") as private:
        path = str(Path(private) / "model.pt2")
        try:
            wrapped = _InPrecision(model.to(device), precision, device).eval()
            mode = use_kernels("reference") if device == "cpu" else _kernels(kernels)
            with quiet(), torch.no_grad(), folded(), mode, _exact_products(precision):
                program = torch.export.export(
                    wrapped, (example,), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
                )
                torch._inductor.aoti_compile_and_package(program, package_path=path, inductor_configs=options)
        except WsssError:
            raise
        except Exception as error:
            # tracer, compiler and the programs that it calls share no base class below Exception
            raise WsssError(
                f"AOTInductor cannot compile {type(model).__name__}",
                why=" ".join(str(error).split())[:400],
                code="export_failed",
            ) from error
        return Path(path).read_bytes(), _has_kernels(program)


def _kernels(mode: str) -> Any:
    return nullcontext() if mode == "auto" else use_kernels(mode)


def _has_kernels(program: torch.export.ExportedProgram) -> bool:
    targets = [str(node.target) for module in program.graph_module.modules() for node in _nodes(module)]
    return any(target.startswith("wsss_rt.") or "triton_kernel" in target for target in targets)


def _nodes(module: nn.Module) -> list[Any]:
    return list(module.graph.nodes) if isinstance(module, torch.fx.GraphModule) else []


@contextmanager
def _exact_products(precision: str) -> Iterator[None]:
    """No TF32 in what the compiler chooses, where float32 was promised."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    if precision == "float32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


@contextmanager
def _private_cache() -> Iterator[None]:
    """The compiler's own cache, which holds code, in this user's folder and not below a shared /tmp."""
    from wsss_rt.engines.compiled_cache import compiled_folder
    from wsss_rt.engines.private_folder import PrivateFolder

    name = "TORCHINDUCTOR_CACHE_DIR"
    if name in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="wsss-rt-") as fallback:
        folder = compiled_folder().parent / "inductor"
        os.environ[name] = fallback
        with suppress(WsssError), PrivateFolder(folder):
            os.environ[name] = str(folder)
        try:
            yield
        finally:
            del os.environ[name]


def _instruction_sets(package: bytes) -> tuple[str, ...]:
    """Of the processor, in torch's names, as the package's own notes say."""
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        for name in archive.namelist():
            if name.endswith("_metadata.json"):
                return tuple(str(json.loads(archive.read(name)).get("AOTI_CPU_ISA", "")).split())
    return ()


def _weights_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
