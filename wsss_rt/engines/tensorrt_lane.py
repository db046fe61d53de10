"""One lane of a TensorRT engine: an execution context, a stream, and memory on both sides.

What runs on it, and what a caller may do while it runs, is NVIDIA's:
https://docs.nvidia.com/deeplearning/tensorrt/11.4.0/_static/python-api/infer/Core/ExecutionContext.html
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wsss_rt.engines.cuda import Block, Gpu
from wsss_rt.engines.cuda_graph import CaptureFailed, CudaGraph

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# an archive holds hundreds of sizes, and each graph keeps a context of its own
_MOST_GRAPHS = 16


@dataclass(frozen=True)
class Tensors:
    """The engine's tensors by name: the input, and the outputs in the card's order."""

    input: str
    outputs: tuple[str, ...]


@dataclass
class _Captured:
    context: Any
    graph: CudaGraph
    shapes: dict[str, tuple[int, ...]]


class Lane:
    """Runs one batch at a time; several lanes of an engine run beside each other.

    The first batch of a shape runs launch by launch. From the second one on its launches are a CUDA graph,
    with a context of its own: a graph holds the addresses and the shapes it was recorded with, and a context
    that went on to another shape would no longer fit it. All contexts of a lane share the memory that
    TensorRT computes in, whose size follows the shape and not the profile's largest.

    Args:
        trt: the module ``tensorrt``.
        engine: ``ICudaEngine``.
        gpu: is active whenever a method here is called.
        log: of :func:`wsss_rt.engines.tensorrt_library.make_log`.
        tensors: names.
        graphs: whether to record CUDA graphs.

    Attributes:
        without_graphs: why no graph is recorded, in words; empty while they are.
    """

    def __init__(self, trt: Any, engine: Any, gpu: Gpu, log: Any, tensors: Tensors, *, graphs: bool) -> None:
        self._trt, self._engine, self._log, self._tensors = trt, engine, log, tensors
        self._stream = gpu.stream()
        self._gpu = gpu
        self._input, self._arena = gpu.block(), gpu.block()
        self._outputs = {name: gpu.block() for name in tensors.outputs}
        self._general = self._new_context()
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._captured: OrderedDict[tuple[int, ...], _Captured] = OrderedDict()
        self._moves = 0
        self._running: dict[str, NDArray[np.float32]] = {}
        self._allocators: dict[str, Any] = {}
        self.without_graphs = "" if graphs else "they were turned off"

    def submit(self, images: NDArray[np.float32], profile: int) -> None:
        """Start a batch; :meth:`collect` waits for it.

        Args:
            images: (B, 3, H, W) float32, within the profile.
            profile: index of the optimisation profile.

        Raises:
            RuntimeError, MemoryError: TensorRT or CUDA refuses; :meth:`settle` makes the lane usable again.
        """
        shape = images.shape
        staged = self._input.host(shape)
        staged[...] = images
        self._input.reserve(images.nbytes)
        known = self._captured.get(shape) if self._moves == self._all_moves() else None
        if known is not None:
            self._captured.move_to_end(shape)
            self._input.upload(staged, self._stream)
            known.graph.launch(self._stream.handle)
            shapes = known.shapes
        else:
            repeated = not self.without_graphs and self._seen[shape] > 0
            context = self._new_context() if repeated else self._general
            shapes = self._prepare(context, shape, profile)
            self._input.upload(staged, self._stream)
            self._enqueue(context)
            if repeated and not self._allocators:
                self._record(context, shape, shapes)
            shapes |= {name: allocator.shape for name, allocator in self._allocators.items()}
        self._seen[shape] += 1
        for name, block in self._outputs.items():
            self._running[name] = block.host(shapes[name])
            block.download(self._running[name], self._stream)

    def collect(self) -> tuple[NDArray[np.float32], ...]:
        """Wait, and give the outputs as arrays of the caller's own."""
        self._stream.synchronize()
        running, self._running = self._running, {}
        return tuple(running[name].copy() for name in self._tensors.outputs)

    def time_device(self, images: NDArray[np.float32], profile: int, repeat: int) -> list[float]:
        """Seconds that the GPU takes for a batch, without copies, by events on the stream.

        Args:
            images: (B, 3, H, W) float32, within the profile.
            profile: index of the optimisation profile.
            repeat: runs that count; two more come before them.
        """
        for _ in range(2):
            self.submit(images, profile)
            self.collect()
        known, times = self._captured.get(images.shape), []
        for _ in range(repeat):
            begin, end = self._gpu.event(), self._gpu.event()
            begin.record(self._stream)
            if known is not None:
                known.graph.launch(self._stream.handle)
            else:
                self._enqueue(self._general)
            end.record(self._stream)
            end.synchronize()
            times.append(begin.time_till(end) / 1000)
        return times

    def settle(self) -> None:
        """Wait until nothing runs, whatever has gone wrong before."""
        self._running = {}
        # the error that led here is the one to tell
        with suppress(Exception):
            self._stream.synchronize()

    def close(self) -> None:
        """Free everything."""
        self.settle()
        self._forget()
        self._general = None
        for block in (self._input, self._arena, *self._outputs.values()):
            block.free()

    def _new_context(self) -> Any:
        context = self._engine.create_execution_context(
            self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if context is None:
            raise RuntimeError(self._log.words("TensorRT gives no execution context"))
        return context

    def _prepare(self, context: Any, shape: tuple[int, ...], profile: int) -> dict[str, tuple[int, ...]]:
        """Give the context its shapes and addresses; shapes of the outputs that are known before a run."""
        handle = self._stream.handle
        if context.active_optimization_profile != profile:
            self._demand(context.set_optimization_profile_async(profile, handle), "the profile")
        self._demand(context.set_input_shape(self._tensors.input, shape), f"the input shape {shape}")
        self._demand(context.set_tensor_address(self._tensors.input, self._input.address), "an address")
        lacking: Sequence[str] = context.infer_shapes()
        self._demand(not lacking, f"shapes: {', '.join(lacking)} are missing")
        shapes: dict[str, tuple[int, ...]] = {}
        for name, block in self._outputs.items():
            found = tuple(int(side) for side in context.get_tensor_shape(name))
            if min(found, default=0) < 0:
                self._demand(context.set_output_allocator(name, self._allocator(name)), "an allocator")
                continue
            size = 4
            for side in found:
                size *= side
            self._demand(context.set_tensor_address(name, block.reserve(size)), "an address")
            shapes[name] = found
        needed = int(context.update_device_memory_size_for_shapes())
        context.set_device_memory(self._arena.reserve(needed), needed)
        return shapes

    def _enqueue(self, context: Any) -> None:
        self._demand(context.execute_async_v3(self._stream.handle), "to run")

    def _record(self, context: Any, shape: tuple[int, ...], shapes: dict[str, tuple[int, ...]]) -> None:
        """Record the launches that this context has just made once, as its state is settled only then."""
        if self._moves != self._all_moves():
            # addresses changed since the last recording: all of them are void
            self._stream.synchronize()
            self._forget()
            self._moves = self._all_moves()
        try:
            graph = CudaGraph(self._stream.handle, lambda: self._enqueue(context))
        except CaptureFailed as error:
            self.without_graphs = str(error)
            return
        self._captured[shape] = _Captured(context, graph, dict(shapes))
        if len(self._captured) > _MOST_GRAPHS:
            self._stream.synchronize()
            self._captured.popitem(last=False)[1].graph.close()

    def _forget(self) -> None:
        for captured in self._captured.values():
            captured.graph.close()
        self._captured.clear()

    def _all_moves(self) -> int:
        return sum(block.moved for block in (self._input, self._arena, *self._outputs.values()))

    def _allocator(self, name: str) -> Any:
        if name not in self._allocators:
            self._allocators[name] = _make_allocator(self._trt, self._outputs[name])
        return self._allocators[name]

    def _demand(self, granted: bool, what: str) -> None:
        if not granted:
            raise RuntimeError(self._log.words(f"TensorRT refuses {what}"))


def _make_allocator(trt: Any, block: Block) -> Any:
    """An ``IOutputAllocator`` for an output whose shape is known only while it is computed."""

    class Allocator(trt.IOutputAllocator):
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shape: tuple[int, ...] = ()

        def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
            # CUDA aligns to 256 bytes, which is more than TensorRT asks for
            return block.reserve(max(1, size))

        def reallocate_output_async(
            self, tensor_name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            return block.reserve(max(1, size))

        def notify_shape(self, tensor_name: str, shape: Sequence[int]) -> None:
            self.shape = tuple(int(side) for side in shape)

    return Allocator()
