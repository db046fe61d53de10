"""What TensorRT's Python classes offer, read from the real ones, so that fakes in tests can be as strict.

    python -m tests.engines.tensorrt_signatures FILE.json tensorrt_bindings

adds the classes of a module to the JSON file. The wheels ``tensorrt_cu13_bindings`` and
``tensorrt_cu12_bindings`` (1 MB each, from PyPI) hold the whole API without the library behind it. They
import where something gives their loader the library's C functions; :func:`stand_in` compiles it, and nothing
of it runs.
``tensorrt_lean_bindings`` imports with its own library beside it, and holds the runtime's half of the API.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

FILE = Path(__file__).with_name("tensorrt_signatures.json")
# what wsss-rt uses; Logger and IOutputAllocator are also derived from
CLASSES = (
    "Builder", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "IHostMemory", "ILogger",
    "INetworkDefinition", "IOptimizationProfile", "IOutputAllocator", "ITensor", "ITimingCache", "OnnxParser",
    "ParserError", "Runtime",
)  # fmt: skip
ENUMS = (
    "BuilderFlag", "DataType", "ExecutionContextAllocationStrategy", "MemoryPoolType",
    "NetworkDefinitionCreationFlag", "PreviewFeature", "TensorIOMode",
)  # fmt: skip
_SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
_SIGNATURE = re.compile(r"^(?:\d+\. )?(\w+)\((.*)\)(?: -> .*)?$")


def stand_in(folder: Path, major: int) -> None:
    """Compile and load libraries that the bindings' loader takes for TensorRT's; functions return null."""
    source = folder / "stand_in.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _SYMBOLS))
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        target = folder / f"lib{name}.so.{major}"
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{target.name}", "-o", str(target), str(source)]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(target), mode=ctypes.RTLD_GLOBAL)


def signatures_of(module: ModuleType) -> dict[str, Any]:
    """Per class its methods, each with its overloads as ``"name, name="`` where an ending ``=`` says that a
    parameter may be left out, and its attributes; per enumeration its members.
    """
    classes = {name: _class(getattr(module, name)) for name in CLASSES if hasattr(module, name)}
    enums = {name: sorted(getattr(module, name).__members__) for name in ENUMS if hasattr(module, name)}
    enums["ILogger.Severity"] = sorted(module.ILogger.Severity.__members__)
    return {"classes": classes, "enums": enums}


def _class(found: type) -> dict[str, Any]:
    methods: dict[str, list[str]] = {}
    attributes = []
    for name in dir(found):
        if (
            (name.startswith("_") and name != "__init__")
            or name.startswith("add_")
            and "Network" in found.__name__
        ):
            continue
        value = getattr(found, name)
        if callable(value) and not isinstance(value, type):
            if overloads := _overloads(value.__doc__ or ""):
                methods[name] = overloads
        elif not isinstance(value, type):
            attributes.append(name)
    return {"methods": methods, "attributes": attributes}


def _overloads(text: str) -> list[str]:
    found = []
    for line in text.splitlines():
        match = _SIGNATURE.match(line)
        if match is None or match[2] == "*args, **kwargs":
            continue
        # without self
        found.append(", ".join(_parameter(part) for part in _split(match[2])[1:]))
    return found


def _parameter(text: str) -> str:
    return text.split(":")[0].split("=")[0].strip() + ("=" if "=" in text else "")


def _split(text: str) -> list[str]:
    """Parameters, at the commas that stand in no brackets."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "([{<") - (character in ")]}>" and text[position - 1 : position + 1] != "->")
        if character == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    return [part for part in (*parts, text[start:].strip()) if part]


def main() -> None:
    """See the module's text."""
    import tempfile

    target = Path(sys.argv[1])
    known: dict[str, Any] = json.loads(target.read_text()) if target.exists() else {}
    for name in sys.argv[2:]:
        with tempfile.TemporaryDirectory() as folder:
            for major in (10, 11) if "lean" not in name else ():
                stand_in(Path(folder), major)
            module = importlib.import_module(name)
        known[f"{name.removesuffix('_bindings')} {module.__version__}"] = signatures_of(module)
    target.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
