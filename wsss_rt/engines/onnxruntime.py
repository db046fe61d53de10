"""ONNX Runtime: the CPU provider everywhere, the CUDA provider where onnxruntime-gpu is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsss_rt.engines.batch_limit import BatchLimit
from wsss_rt.engines.runtime import LibraryEngine, load_error
from wsss_rt.errors import WsssError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsss_rt.model_card import ModelCard

CUDA_PROVIDER = "CUDAExecutionProvider"


class CudaUnavailable(WsssError):
    """The CUDA provider is not there or does not start."""

    default_code = "cuda_unavailable"


def cuda_offered() -> bool:
    """Whether the installed build holds the CUDA provider; that it starts is only known by starting it."""
    import onnxruntime as ort

    return CUDA_PROVIDER in ort.get_available_providers()


class OnnxRuntimeEngine(LibraryEngine):
    """An artifact in ONNX Runtime.

    Args:
        card: the model's card.
        model: the bytes that the card was read from.
        device: ``cpu`` or ``cuda``.
        threads: processors for one image; by default all that the process may use.

    Raises:
        WsssError: the library refuses the model.
        CudaUnavailable: ``cuda``, and the provider is not there or does not start.
    """

    backend = "onnxruntime"

    def __init__(
        self, card: ModelCard, model: bytes, *, device: str = "cpu", threads: int | None = None
    ) -> None:
        import onnxruntime as ort

        super().__init__(card, threads)
        options = ort.SessionOptions()
        # an explicit count also keeps the library from pinning threads to processors that a container hides
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # a thread that spins while it waits takes the processor from decoding and writing beside it
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # a pattern is kept for every input size ever seen, and an archive holds hundreds of sizes
        options.enable_mem_pattern = False
        providers: list[Any] = ["CPUExecutionProvider"]
        if device == "cuda":
            if not cuda_offered():
                raise CudaUnavailable(
                    "ONNX Runtime has no CUDA provider",
                    why="the installed package is the CPU build",
                    fix="pip install onnxruntime-gpu in place of onnxruntime; see `wsss-rt doctor`",
                )
            # TF32 would keep ten bits of the mantissa, and the parity gate speaks of float32
            providers.insert(0, (CUDA_PROVIDER, {"use_tf32": "0"}))
        try:
            self._loaded = ort.InferenceSession(model, options, providers=providers)
        except Exception as error:
            # the library's exceptions share no base class below Exception
            raise load_error(error, self.backend) from error
        if device == "cuda" and self._loaded.get_providers()[0] != CUDA_PROVIDER:
            raise CudaUnavailable(
                "ONNX Runtime cannot start its CUDA provider",
                why="it fell back to the CPU, as it does without a driver or with other CUDA libraries",
                fix="see `wsss-rt doctor` for what is missing",
            )
        if device == "cuda":
            self.device = "cuda:0"
            self._limit = BatchLimit()
        self._input = self._loaded.get_inputs()[0].name

    def _run_one(self, image: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        try:
            results = self._loaded.run(list(self.card.outputs), {self._input: image})
        except Exception as error:
            # the library's exceptions share no base class below Exception
            raise RuntimeError(str(error)) from error
        return tuple(results)
