"""The kernels compiled without a GPU: what each would launch, its PTX, and what that needs of a device.

    python -m wsss_rt.kernels.ahead_of_time [--architectures 80,90,100] [--only attend] [--out FOLDER]

An operator's folder declares, in ``EXAMPLES`` of its ``triton.py``, calls as models make them. Each is run on
the meta device with its launches recorded, so that types, constants, alignment and grid are those of the real
launch, and Triton's own compiler and assembler then build it for any architecture. Under Triton's interpreter
kernels have no compiler: unset ``TRITON_INTERPRET``.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from wsss_rt.errors import WsssError
from wsss_rt.kernels._dispatch import interpreting
from wsss_rt.kernels._launch import recording
from wsss_rt.kernels._tiles import for_architecture

#: Bytes of shared memory that a block may take, by compute capability times ten.
SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
ARCHITECTURES = (80, 90, 100)
_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.uint16: "u16",
    torch.bool: "i1",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float64: "fp64",
}
_SPECIAL = ("num_warps", "num_stages", "num_ctas")


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        operator: folder of the kernel.
        example: of which call.
        kernel: the ``triton.jit`` function.
        signature: Triton's type of each argument; ``constexpr`` for constants.
        constants: of those.
        aligned: arguments that are multiples of 16.
        grid: programs.
        warps: of 32 threads, a program.
        stages: of the software pipeline.
    """

    operator: str
    example: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: frozenset[str]
    grid: tuple[int, ...]
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a launch.

    Attributes:
        operator: folder of the kernel.
        example: of which call.
        kernel: name of the entry.
        architecture: compute capability times ten.
        threads: of a program.
        shared: bytes of shared memory a program.
        registers: of a thread.
        spilled: bytes a thread that did not fit into registers.
        ptx: text.
        cubin: machine code.
    """

    operator: str
    example: str
    kernel: str
    architecture: int
    threads: int
    shared: int
    registers: int
    spilled: int
    ptx: str
    cubin: bytes

    @property
    def fits(self) -> bool:
        """Whether it runs without spilling, within the device's shared memory."""
        return not self.spilled and self.shared <= SHARED_MEMORY.get(
            self.architecture, min(SHARED_MEMORY.values())
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the code."""
        row = asdict(self)
        del row["ptx"], row["cubin"]
        return {**row, "fits": self.fits}


def operators() -> list[str]:
    """Folders beside this file that hold a ``triton.py``."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/triton.py"))


def launches(architecture: int) -> Iterator[Launch]:
    """All launches of all examples of all operators, with the tiles of this architecture."""
    for operator in operators():
        module = importlib.import_module(f"wsss_rt.kernels.{operator}.triton")
        for example, call in getattr(module, "EXAMPLES", {}).items():
            yield from launches_of(call, architecture, operator=operator, example=example)


def launches_of(
    call: Callable[[], Any], architecture: int, *, operator: str = "", example: str = ""
) -> list[Launch]:
    """What a call launches, without launching it; its tensors are on the meta device."""
    found: list[Launch] = []

    def note(kernel: Any, grid: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append(_described(operator, example, kernel, grid, args, named))

    with recording(note), for_architecture(architecture):
        call()
    return found


def compile_launch(launch: Launch, architecture: int) -> Compiled:
    """Compile one launch.

    Raises:
        WsssError: Triton interprets kernels in this process.
    """
    if interpreting():
        raise WsssError(
            "kernels cannot be compiled here",
            why="TRITON_INTERPRET is set, so Triton interprets them",
            fix="unset it before Python starts",
        )
    names = launch.kernel.arg_names
    source = triton.compiler.ASTSource(
        launch.kernel,
        dict(launch.signature),
        dict(launch.constants),
        {(names.index(name),): [["tt.divisibility", 16]] for name in launch.aligned},
    )
    built = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": launch.warps, "num_stages": launch.stages},
    )
    registers, spilled = _resources(built.asm["cubin"], built.metadata.name)
    return Compiled(
        operator=launch.operator,
        example=launch.example,
        kernel=built.metadata.name,
        architecture=architecture,
        threads=32 * built.metadata.num_warps,
        shared=built.metadata.shared,
        registers=registers,
        spilled=spilled,
        ptx=built.asm["ptx"],
        cubin=built.asm["cubin"],
    )


def compile_all(architecture: int, *, only: str = "") -> Iterator[Compiled]:
    """Compile every launch whose kernel's name or example contains ``only``; the same launch once."""
    seen = set()
    for launch in launches(architecture):
        if only not in f"{launch.operator} {launch.kernel.__name__} {launch.example}":
            continue
        key = (
            launch.kernel.__name__,
            tuple(sorted(launch.signature.items())),
            tuple(sorted((name, str(value)) for name, value in launch.constants.items())),
            launch.aligned,
            launch.warps,
            launch.stages,
        )
        if key not in seen:
            seen.add(key)
            yield compile_launch(launch, architecture)


def _described(
    operator: str, example: str, kernel: Any, grid: Any, args: tuple[Any, ...], named: dict[str, Any]
) -> Launch:
    names = kernel.arg_names
    values = dict(zip(names, args, strict=False)) | {
        name: value for name, value in named.items() if name not in _SPECIAL
    }
    noted = inspect.signature(kernel.fn).parameters
    constant = {name for name in names if "constexpr" in str(noted[name].annotation)}
    signature, constants, aligned = {}, {}, set()
    for name in names:
        value = values[name]
        if name in constant or value is None or (type(value) is int and value == 1):
            # Triton makes constants of ones, as it does at a launch
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = f"*{_TYPES[value.dtype]}"
            aligned.add(name)
        elif isinstance(value, bool):
            signature[name] = "i1"
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                aligned.add(name)
        else:
            signature[name] = "fp32"
    if callable(grid):
        grid = grid(values)
    return Launch(
        operator=operator,
        example=example,
        kernel=kernel,
        signature=signature,
        constants=constants,
        aligned=frozenset(aligned),
        grid=tuple(int(size) for size in grid),
        warps=named.get("num_warps", 4),
        stages=named.get("num_stages", 3),
    )


def _resources(cubin: bytes, name: str) -> tuple[int, int]:
    """Registers a thread, and spilled bytes (its frame), by the disassembler that comes with Triton."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path
        text = subprocess.run(
            [tool, "--dump-resource-usage", str(path)], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(rf"Function {re.escape(name)}:\s*REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise WsssError(f"the resources of {name} are not in what cuobjdump says", why=text.strip()[:200])
    return int(found[1]), int(found[2])


def main() -> int:
    """Compile, print a line each; 1 where one spills or does not fit."""
    parser = argparse.ArgumentParser(prog="python -m wsss_rt.kernels.ahead_of_time")
    parser.add_argument("--architectures", default=",".join(map(str, ARCHITECTURES)))
    parser.add_argument("--only", default="", help="part of an operator's, a kernel's or an example's name")
    parser.add_argument("--out", type=Path, help="folder for PTX, machine code and a JSON list")
    options = parser.parse_args()
    rows = []
    for architecture in map(int, options.architectures.split(",")):
        for made in compile_all(architecture, only=options.only):
            rows.append(made.as_dict())
            print(json.dumps(rows[-1]), flush=True)
            if options.out:
                options.out.mkdir(parents=True, exist_ok=True)
                stem = f"{made.kernel}-sm{architecture}-{len(rows)}"
                (options.out / f"{stem}.ptx").write_text(made.ptx)
                (options.out / f"{stem}.cubin").write_bytes(made.cubin)
    if options.out and rows:
        (options.out / "kernels.json").write_text(json.dumps(rows, indent=1) + "\n")
    return int(not rows or any(not row["fits"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
