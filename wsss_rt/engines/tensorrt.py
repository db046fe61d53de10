"""TensorRT on a GPU of NVIDIA, through pycuda and without PyTorch.

A plan is built from the artifact when it is first needed on a machine (``tensorrt_plan.py``). Here it is run:
batches over several execution contexts, each with a stream, pinned memory and CUDA graphs of its own.
"""

from __future__ import annotations

from collections import deque
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from wsss_rt.engines.batch_limit import BatchLimit
from wsss_rt.engines.cuda import Gpu
from wsss_rt.engines.runtime import LibraryEngine, engine_error
from wsss_rt.engines.tensorrt_lane import Lane, Tensors
from wsss_rt.engines.tensorrt_library import library, load_plan, make_log
from wsss_rt.engines.tensorrt_profiles import choose, profiles_of
from wsss_rt.errors import WsssError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsss_rt.model_card import ModelCard

_LANES = 2


class TensorRtEngine(LibraryEngine):
    """A plan in TensorRT; safe to be called from several threads, as many at once as it has lanes.

    Results of an image can differ in their last bits with the size of the batch that it is in: TensorRT
    chooses its kernels by shape.

    Args:
        card: the card of the artifact that the plan was built from.
        plan: bytes that were checked by :mod:`wsss_rt.engines.compiled_cache`.
        precision: that the plan was built in.
        gpu: by default the first visible one.
        lanes: execution contexts; memory for a batch each.
        graphs: whether launches of a repeated shape are recorded as a CUDA graph.

    Raises:
        UsageError: no GPU, no pycuda, no TensorRT.
        WsssError: code ``engine_load``: TensorRT refuses the plan, or it is another model's.
    """

    backend = "tensorrt"
    device = "cuda:0"

    def __init__(
        self,
        card: ModelCard,
        plan: bytes,
        *,
        precision: str,
        gpu: Gpu | None = None,
        lanes: int = _LANES,
        graphs: bool = True,
    ) -> None:
        super().__init__(card, None)
        # the driver comes first: without one TensorRT starts and ends the process later
        self._gpu = gpu or Gpu()
        self._trt = library()
        self.precision = precision
        self._log = make_log(self._trt)
        self._limit = BatchLimit()
        self._idle: SimpleQueue[Lane] = SimpleQueue()
        self._lanes: list[Lane] = []
        try:
            with self._gpu.active():
                self._runtime, self._loaded = load_plan(self._trt, self._log, plan)
                tensors = self._tensors()
                self._profiles = profiles_of(self._loaded, tensors.input)
                for _ in range(lanes):
                    lane = Lane(self._trt, self._loaded, self._gpu, self._log, tensors, graphs=graphs)
                    self._lanes.append(lane)
                    self._idle.put(lane)
        except (RuntimeError, MemoryError) as error:
            raise WsssError(
                "TensorRT cannot start the plan",
                why=" ".join(str(error).split())[:300],
                fix="close other programs that use the GPU, or choose another --backend",
                code="engine_load",
            ) from error

    def close(self) -> None:
        """Free the plan and everything on the device."""
        if self._loaded is None:
            return
        with self._gpu.active():
            for lane in self._lanes:
                lane.close()
            self._lanes = []
            self._loaded = self._runtime = None

    def time_device(self, images: NDArray[np.float32], repeat: int) -> list[float]:
        """Seconds that the GPU takes for a batch, without copies to and from it; for benchmarks.

        Args:
            images: (B, 3, H, W) float32, no larger than the plan's largest batch.
            repeat: how many runs.

        Raises:
            ImageError, WsssError: as :meth:`run`.
        """
        batch, _, height, width = images.shape
        profile, most = choose(self._profiles, batch, height, width)
        if batch > most:
            raise ValueError(f"the plan runs at most {most} images of this size at once, not {batch}")
        lane = self._idle.get()
        try:
            with self._gpu.active():
                return lane.time_device(images, profile, repeat)
        except (RuntimeError, MemoryError) as error:
            raise engine_error(error, self.backend, images.shape) from error
        finally:
            self._idle.put(lane)

    def graphs_unused(self) -> str:
        """Why CUDA graphs are not used; empty while they are."""
        return next((lane.without_graphs for lane in self._lanes if lane.without_graphs), "")

    def _run_one(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """A batch of any size: in parts that a profile holds, over as many lanes as are free."""
        import numpy as np

        batch, _, height, width = images.shape
        profile, most = choose(self._profiles, batch, height, width)
        found: list[tuple[NDArray[np.float32], ...]] = []
        busy: deque[Lane] = deque()
        with self._gpu.active():
            try:
                for start in range(0, batch, most):
                    lane = self._next(busy, found)
                    # before it is started: a lane that failed has to settle as well
                    busy.append(lane)
                    lane.submit(images[start : start + most], profile)
                while busy:
                    found.append(busy[0].collect())
                    self._idle.put(busy.popleft())
            finally:
                for lane in busy:
                    lane.settle()
                    self._idle.put(lane)
        if len(found) == 1:
            return found[0]
        return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))

    def _next(self, busy: deque[Lane], found: list[tuple[NDArray[np.float32], ...]]) -> Lane:
        """A lane for the next part: a free one, or the one of ours that has run longest."""
        if not busy:
            return self._idle.get()
        try:
            return self._idle.get_nowait()
        except Empty:
            found.append(busy[0].collect())
            return busy.popleft()

    def _tensors(self) -> Tensors:
        """The engine's tensors, which must be those that the card speaks of, in float32.

        Raises:
            WsssError: code ``engine_load``.
        """
        trt, engine = self._trt, self._loaded
        names = [engine.get_tensor_name(index) for index in range(int(engine.num_io_tensors))]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        other = [name for name in names if engine.get_tensor_dtype(name) != trt.DataType.FLOAT]
        if len(inputs) != 1 or set(outputs) != set(self.card.outputs) or other:
            raise WsssError(
                "the TensorRT plan is not this model's",
                why=f"it takes {', '.join(inputs)} and gives {', '.join(outputs)}"
                + (f"; not in float32: {', '.join(other)}" if other else ""),
                fix="delete it and build it anew",
                code="engine_load",
            )
        return Tensors(inputs[0], self.card.outputs)
