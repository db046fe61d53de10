"""TensorRT's Python package: that it is there, what it logs, and a plan loaded into it.

Written for TensorRT 10 and 11, whose classes are the same as far as they are used here:
https://docs.nvidia.com/deeplearning/tensorrt/11.4.0/_static/python-api/infer/Core/Runtime.html
"""

from __future__ import annotations

import importlib
from typing import Any

from wsss_rt.errors import UsageError, WsssError

SUPPORTED = (10, 11)


def library() -> Any:
    """The module ``tensorrt``.

    Raises:
        UsageError: not installed, not importable, or a version that is not known here.
    """
    try:
        trt = importlib.import_module("tensorrt")
    except ModuleNotFoundError as error:
        raise UsageError(
            "TensorRT is not installed", fix="pip install 'wsss-rt[tensorrt]'", code="backend_missing"
        ) from error
    except (ImportError, OSError) as error:
        # its loader opens libraries with ctypes, whose failure is an OSError
        raise UsageError(
            "TensorRT is installed and cannot be imported",
            why=" ".join(str(error).split())[:300],
            fix="pip install --force-reinstall tensorrt; see `wsss-rt doctor`",
            code="backend_broken",
        ) from error
    version = str(trt.__version__)
    if int(version.split(".")[0]) not in SUPPORTED:
        raise UsageError(
            f"TensorRT {version} is not supported",
            why=f"this wsss-rt knows TensorRT {' and '.join(map(str, SUPPORTED))}",
            fix="pip install 'tensorrt>=10,<12'",
            code="backend_version",
        )
    return trt


def make_log(trt: Any) -> Any:
    """A logger that keeps the last errors, so that they can be told in one line and not printed in ten.

    Returns:
        A ``trt.ILogger`` with ``errors``, the last few texts, and ``words(default)``.
    """

    class Log(trt.ILogger):
        def __init__(self) -> None:
            # the binding needs its own constructor called by name
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors = [*self.errors[-4:], " ".join(str(msg).split())]

        def words(self, default: str) -> str:
            found, self.errors = self.errors, []
            return "; ".join(found) or default

    return Log()


def load_plan(trt: Any, log: Any, plan: bytes) -> tuple[Any, Any]:
    """The runtime, which must outlive the engine, and the ``ICudaEngine``.

    Args:
        trt: of :func:`library`.
        log: of :func:`make_log`.
        plan: bytes that were checked; a plan is code, see
            https://docs.nvidia.com/deeplearning/tensorrt/11.4.0/api/migration/tensorrt-10x-to-11x-python-api.html

    Raises:
        WsssError: code ``engine_load``: of another version or GPU, or no plan.
    """
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise WsssError(
            f"TensorRT {trt.__version__} cannot load the plan",
            why=log.words(
                "it says nothing; a plan runs in the version and on the GPU model it was built for"
            ),
            fix="delete it and build it anew here",
            code="engine_load",
        )
    return runtime, engine
