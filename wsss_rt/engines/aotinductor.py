"""AOTInductor packages: the model compiled ahead of time by PyTorch, for one kind of machine. Needs torch.

This is the only module of the runtime that imports torch.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wsss_rt.engines.batch_limit import BatchLimit
from wsss_rt.engines.processor import lacking_instructions, processor_name
from wsss_rt.engines.runtime import LibraryEngine, check_images, engine_error, load_error
from wsss_rt.errors import UsageError, WsssError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wsss_rt.model_card import ModelCard
    from wsss_rt.model_package import BuiltFor

# each keeps its own memory for all intermediates, and an archive holds hundreds of sizes
_GRAPHS_KEPT = 8
# a shape that comes once is not worth the recording
_RECORDED_AT = 3
MODEL_NAME = "model"


def this_machine(device: str) -> dict[str, str]:
    """What a package is built for, of this machine: ``torch``, ``platform``, ``name``, and of a GPU its
    ``compute_capability``."""
    found = {"torch": torch.__version__, "platform": f"{sys.platform} {platform.machine()}"}
    if device == "cpu":
        return found | {"name": processor_name()}
    major, minor = torch.cuda.get_device_capability()
    return found | {"name": torch.cuda.get_device_name(), "compute_capability": f"{major}.{minor}"}


def check_machine(built_for: BuiltFor, source: str) -> None:
    """Refuse a package that was built for another kind of machine, before any of its code is loaded.

    Raises:
        WsssError: code ``other_machine``, naming what differs.
    """
    differing = []
    if built_for.device == "cuda" and not torch.cuda.is_available():
        differing.append(
            "it needs an NVIDIA GPU, and torch sees none"
            if torch.version.cuda
            else "it needs an NVIDIA GPU, and the installed torch is the CPU build"
        )
    else:
        here = this_machine(built_for.device)
        if built_for.platform != here["platform"]:
            differing.append(f"it was built for {built_for.platform}, and this is {here['platform']}")
        if _release(built_for.torch) != _release(here["torch"]):
            differing.append(f"it was built with torch {built_for.torch}, and {here['torch']} is installed")
        if built_for.device == "cuda" and built_for.compute_capability != here["compute_capability"]:
            differing.append(
                f"it was built for {built_for.name} (compute capability {built_for.compute_capability}), and "
                f"this is {here['name']} ({here['compute_capability']})"
            )
        if lacking := lacking_instructions(built_for.isa):
            differing.append(
                f"it was built for {built_for.name} and uses {', '.join(lacking)}, which this processor lacks"
            )
    if differing:
        raise WsssError(
            f"{source} cannot run here",
            why="; ".join(differing),
            fix="build it on this machine: wsss-rt export RUN --to aotinductor",
            code="other_machine",
        )


def _release(version: str) -> tuple[str, ...]:
    """Major and minor version; what compiled code links to stays the same within one."""
    return tuple(version.split("+")[0].split(".")[:2])


class AotInductorEngine(LibraryEngine):
    """A package in the process's own PyTorch.

    On a CPU images run one at a time, as in the other engines; on a GPU a batch runs whole, and smaller ones
    after memory ran out.

    Args:
        card: the model's card.
        package: the bytes that were checked.
        built_for: what the package says of its machine; compared with this one first.
        device: ``auto``, ``cpu`` or ``cuda``: where the caller wants it.
        threads: processors for one image; by default all that the process may use.
        cuda_graphs: on a GPU, record the launches of a shape that comes again, and replay them.

    Raises:
        UsageError: ``device`` is not the package's.
        WsssError: code ``other_machine`` or ``engine_load``.
    """

    backend = "aotinductor"

    def __init__(
        self,
        card: ModelCard,
        package: bytes,
        built_for: BuiltFor,
        *,
        device: str = "auto",
        threads: int | None = None,
        cuda_graphs: bool = True,
        source: str = "this package",
    ) -> None:
        super().__init__(card, threads)
        if device not in ("auto", built_for.device):
            raise UsageError(
                f"{source} is compiled for {built_for.device} and cannot run on {device}",
                fix=f"use --device {built_for.device}, or export one with --device {device}",
            )
        check_machine(built_for, source)
        self.precision = built_for.precision
        self.torch_device = torch.device("cpu")
        self._graphs: _Graphs | None = None
        if built_for.device == "cuda":
            self.torch_device = torch.device("cuda", torch.cuda.current_device())
            self.device = f"cuda:{self.torch_device.index}"
            self._limit = BatchLimit(free=torch.cuda.empty_cache)
            if cuda_graphs:
                self._graphs = _Graphs(self._call, exhausted=lambda: _exhausted(self.torch_device))
        self._loaded = _load(package, self.torch_device, single=self._graphs is not None)
        self.choice["built_for"] = {"name": built_for.name, "torch": built_for.torch}
        self.choice["kernels"] = "triton" if built_for.kernels else "none"

    def run_tensors(self, images: Tensor) -> tuple[Tensor, ...]:
        """A batch from device to device, on the current stream, without waiting for the device.

        Args:
            images: (B, 3, H, W) float32 on the engine's device.

        Returns:
            What the card's ``outputs`` name, float32 on the same device, each with the batch first.

        Raises:
            ImageError: the engine failed on this input, or one image is too large for the memory.
            WsssError: code ``device_lost``.
        """
        # compiled code believes every size and type
        if images.dtype != torch.float32 or images.dim() != 4 or images.shape[1] != 3 or images.shape[0] < 1:
            raise ValueError(f"expected float32 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        if images.device != self.torch_device or min(images.shape[2:]) < self.card.input.patch:
            raise ValueError(f"{tuple(images.shape)} on {images.device} is no input for {self.torch_device}")
        if self._limit is None:
            parts = [self._guarded(images[index : index + 1]) for index in range(images.shape[0])]
        else:
            parts = list(self._limit.run(images, self._guarded))
        if len(parts) == 1:
            return parts[0]
        return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))

    def run(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run a batch; see :meth:`wsss_rt.engines.base.Engine.run`."""
        check_images(images, self.card.input.patch)
        # a mirrored view has negative strides, which torch does not take
        tensor = torch.from_numpy(np.ascontiguousarray(images))
        if self._limit is not None:
            tensor = tensor.pin_memory().to(self.torch_device, non_blocking=True)
        outputs = self.run_tensors(tensor)
        try:
            return tuple(output.cpu().numpy() for output in outputs)
        except RuntimeError as error:
            # what a kernel did wrong on a GPU is only told by the first call that waits for it
            raise engine_error(error, self.backend, images.shape) from error

    def close(self) -> None:
        """Free the loaded model and what was recorded of it."""
        if self._graphs is not None:
            self._graphs.clear()
        super().close()

    def _run_one(self, image: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        return self.run(image)

    def _guarded(self, images: Tensor) -> tuple[Tensor, ...]:
        before = _exhausted(self.torch_device)
        if self._limit is None and torch.get_num_threads() != self._threads:
            # each thread that calls has a count of its own
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode(), _exact(self.precision):
                return self._call(images) if self._graphs is None else self._graphs(images)
        except (RuntimeError, MemoryError, ValueError) as error:
            shape = tuple(images.shape)
            if _exhausted(self.torch_device) > before:
                # compiled code reports that some call failed, and not why
                raise engine_error(MemoryError(str(error)), self.backend, shape) from error
            raise engine_error(_told_by_device(error, self.torch_device), self.backend, shape) from error

    def _call(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._loaded.run([images.contiguous()]))


class _Graphs:
    """Recorded launches of the last shapes that came repeatedly (CUDA graphs).

    A recording keeps the memory of all intermediates. Where that ran out, nothing is recorded any more, and
    what was is freed: the launches cost less than smaller batches.

    Args:
        call: what to record.
        exhausted: how often memory ran out so far.
    """

    def __init__(
        self, call: Callable[[Tensor], tuple[Tensor, ...]], *, exhausted: Callable[[], int] = lambda: 0
    ) -> None:
        self._call, self._exhausted, self._off = call, exhausted, False
        self._seen: OrderedDict[tuple[int, ...], int] = OrderedDict()
        self._recorded: OrderedDict[tuple[int, ...], tuple[Any, Tensor, tuple[Tensor, ...]]] = OrderedDict()

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        shape = tuple(images.shape)
        if self._off:
            return self._call(images)
        if shape not in self._recorded:
            count = self._seen.pop(shape, 0) + 1
            self._seen[shape] = count
            if len(self._seen) > 64 * _GRAPHS_KEPT:
                self._seen.popitem(last=False)
            if count < _RECORDED_AT:
                return self._call(images)
            while len(self._recorded) >= _GRAPHS_KEPT:
                self._recorded.popitem(last=False)
            before = self._exhausted()
            try:
                self._recorded[shape] = self._record(images)
            except RuntimeError:
                # only memory: after an illegal access nothing may be tried again
                if self._exhausted() == before:
                    raise
                self._off = True
            if self._off:
                self.clear()
                return self._call(images)
        self._recorded.move_to_end(shape)
        graph, taken, outputs = self._recorded[shape]
        taken.copy_(images)
        graph.replay()
        # the next replay writes into the same memory
        return tuple(output.clone() for output in outputs)

    def clear(self) -> None:
        """Forget what was recorded, and free its memory."""
        self._recorded.clear()
        self._seen.clear()

    def _record(self, images: Tensor) -> tuple[Any, Tensor, tuple[Tensor, ...]]:
        taken = images.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            # libraries allocate their workspaces in a first call, which must not be recorded
            self._call(taken)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # other threads copy and wait meanwhile, which the default mode would take for part of the recording
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = self._call(taken)
        return graph, taken, outputs


def _load(package: bytes, device: torch.device, *, single: bool) -> Any:
    loader = getattr(torch._C, "_aoti", None)
    if loader is None or not hasattr(loader, "AOTIModelPackageLoader"):
        raise WsssError(
            f"torch {torch.__version__} cannot load AOTInductor packages", fix="pip install 'torch>=2.11'"
        )
    # torch's public entrance reads the archive in Python first, unpickles what it finds there, and imports
    # the whole compiler for a comparison that `check_machine` makes without it
    with tempfile.TemporaryDirectory(prefix="wsss-rt-") as private:
        path = Path(private) / "model.pt2"
        path.write_bytes(package)
        try:
            return loader.AOTIModelPackageLoader(str(path), MODEL_NAME, single, 1, device.index or -1)
        except RuntimeError as error:
            raise load_error(error, "aotinductor") from error


@contextmanager
def _exact(precision: str) -> Iterator[None]:
    """Without TF32 in cuDNN, where float32 was promised."""
    kept = torch.backends.cudnn.allow_tf32
    if precision == "float32":
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = kept


def _exhausted(device: torch.device) -> int:
    """How often the device's memory ran out so far."""
    return int(torch.cuda.memory_stats(device).get("num_ooms", 0)) if device.type == "cuda" else 0


def _told_by_device(error: Exception, device: torch.device) -> Exception:
    """The device's own error, if it is lost, in place of the compiled code's."""
    if device.type != "cuda":
        return error
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as lost:
        return lost
    return error
