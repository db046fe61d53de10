"""OpenVINO on the CPU, in float32 unless bfloat16 is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from wsss_rt.engines.runtime import (
    LibraryEngine,
    check_images,
    engine_error,
    load_error,
    running_precision,
)
from wsss_rt.errors import WsssError
from wsss_rt.kernel_choice import VARIABLE, asked_kernels

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsss_rt.engines.openvino_attention import AttentionCrews
    from wsss_rt.model_card import ModelCard

# kernels are kept for every input size ever seen, 3 MB a size with a small model, and an archive holds
# hundreds of sizes; this many kernels still let the layers of one pass share theirs
_BOUNDED = {"CPU_RUNTIME_CACHE_CAPACITY": "64"}
# an image and its mirror image: each on its own half of the threads, which need not wait for each other after
# every layer
_LANES = 2


@cache
def shared_core() -> Any:
    """The one ``openvino.Core`` of this process, never destroyed.

    On processors with AMX its CPU plugin gives the calling thread a stack for signal handlers, and puts back
    what it found when it goes. Two that overlap leave the first one's freed stack in place, and the next
    signal, a Ctrl-C or the end of a child, kills the process without a word (OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


class OpenVinoEngine(LibraryEngine):
    """An artifact in OpenVINO's CPU plugin.

    Images of a batch run beside each other, each alone in one of ``lanes`` streams with its share of the
    threads, so that no bit of an image's result depends on what else is in its batch.

    Args:
        card: the model's card.
        model: the bytes that the card was read from.
        precision: ``float32`` or ``bfloat16``; of a quantised artifact, what is not int8 in it.
        threads: processors for all lanes; by default all that the process may use.
        tell: gets a line before kernels of ours are compiled; a log warning by default.

    Attributes:
        lanes: images that it runs at once.

    Raises:
        WsssError: the library refuses the model; code ``precision_unavailable`` where it would compute in
            another precision than the one asked for, which its hints alone do not keep it from.
    """

    backend = "openvino"

    def __init__(
        self,
        card: ModelCard,
        model: bytes,
        *,
        precision: str = "float32",
        threads: int | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(card, threads)
        hint = "bf16" if precision == "bfloat16" else "f32"
        self.lanes = min(_LANES, self._threads)
        self._crews: AttentionCrews | None = None
        config: dict[str, Any] = {
            # without this hint processors with AMX compute in bfloat16, and nobody is told
            "INFERENCE_PRECISION_HINT": hint,
            "NUM_STREAMS": self.lanes,
            "INFERENCE_NUM_THREADS": self._threads,
            # decoding runs beside inference, and a pinned thread waits for its processor while others idle
            "ENABLE_CPU_PINNING": False,
        }
        try:
            core = shared_core()
            if precision == "bfloat16" and "BF16" not in core.get_property(
                "CPU", "OPTIMIZATION_CAPABILITIES"
            ):
                raise _unavailable(precision, "it lists no BF16 among what this processor is good at")
            graph = core.read_model(model=model, weights=b"")
            if precision == "bfloat16":
                self.choice["attention"] = self._put_attention_into_tiles(
                    graph, tell or logging.getLogger("wsss_rt").warning
                )
            graph = _maps_first(graph)
            try:
                compiled = core.compile_model(graph, "CPU", config | _BOUNDED)
            except RuntimeError as error:
                if not any(name in str(error) for name in _BOUNDED):
                    raise
                # not a public property: a release without it runs the same, in more memory
                compiled = core.compile_model(graph, "CPU", config)
            running = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
            if running != hint:
                raise _unavailable(precision, f"on this processor it computes in {running}")
            self.precision = running_precision(card, precision)
            self._loaded = [compiled.create_infer_request() for _ in range(self.lanes)]
        except RuntimeError as error:
            raise load_error(error, self.backend) from error

    def _put_attention_into_tiles(self, graph: Any, tell: Callable[[str], None]) -> str:
        """Change the graph where this processor can; what was done, for ``choice``."""
        from wsss_rt.engines import amx

        why = f"{VARIABLE}=reference" if asked_kernels() == "reference" else amx.refusal()
        if why is None:
            from wsss_rt.engines.amx.attention import warm_up

            try:
                warm_up(tell)
            except Exception as error:
                # whatever keeps a kernel from being compiled: the graph computes the same without it
                why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        if why is not None:
            return f"in the graph: {why}"
        from wsss_rt.engines.openvino_attention import AttentionCrews, use_tiles

        self._crews = AttentionCrews(max(1, self._threads // self.lanes))
        return f"{len(use_tiles(graph, self._crews))} layers in tiles"

    def close(self) -> None:
        """Free the loaded model."""
        super().close()
        if self._crews is not None:
            self._crews.close()

    def run(self, images: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run a batch; see :meth:`wsss_rt.engines.base.Engine.run`."""
        import numpy as np

        check_images(images, self.card.input.patch)
        parts = []
        for start in range(0, len(images), self.lanes):
            try:
                parts += self._run_beside(images[start : start + self.lanes])
            except (RuntimeError, MemoryError, ValueError) as error:
                raise engine_error(error, self.backend, images.shape) from error
        return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))

    def _run_beside(self, images: NDArray[np.float32]) -> list[tuple[NDArray[np.float32], ...]]:
        """Outputs of up to ``lanes`` images, each a batch of one."""
        import numpy as np

        # kept until all are done: the requests read them
        inputs = [np.ascontiguousarray(images[index : index + 1]) for index in range(len(images))]
        running = list(zip(self._loaded, inputs, strict=False))
        started = []
        try:
            for request, image in running:
                request.start_async({0: image}, share_inputs=True)
                started.append(request)
        finally:
            # also after a failure, whose neighbour would be left reading what is freed here
            failures = [error for request in started if (error := _failure_of(request)) is not None]
        if failures:
            raise failures[0]
        return [
            tuple(np.array(request.results[name], dtype=np.float32) for name in self.card.outputs)
            for request, _ in running
        ]

    def _run_one(self, image: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        return self._run_beside(image)[0]


def _maps_first(graph: Any) -> Any:
    """The graph with its results in reverse.

    The plugin runs what leads to the first result, then the rest. Maps are made of the attention of every
    layer: with the scores first, all layers' attention waits in memory until the last block has run.
    """
    import openvino

    return openvino.Model(graph.get_results()[::-1], graph.get_parameters(), graph.get_friendly_name())


def _failure_of(request: Any) -> RuntimeError | None:
    """Wait for a request; what it failed with."""
    try:
        request.wait()
    except RuntimeError as error:
        return error
    return None


def _unavailable(precision: str, why: str) -> WsssError:
    return WsssError(
        f"OpenVINO cannot run the model in {precision} here",
        why=why,
        fix="drop --precision",
        code="precision_unavailable",
    )
