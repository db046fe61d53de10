"""``wsss-rt doctor``: what this machine can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Check every Triton kernel on the GPU anew, for minutes.")
    ] = False,
) -> None:
    """Show versions and devices, and what is missing for what.

    Always ends with 0; what is broken is shown with its reason. Put its output into bug reports.

    On a GPU kernels run in place of PyTorch where they were found right, and no slower, on this very one.
    Commands check those that they need once, before they first need them; --kernels checks all of them anew.

    \b
    wsss-rt doctor
    wsss-rt doctor --kernels
    wsss-rt doctor --json > machine.json
    """
    import json

    from wsss_rt.doctor import collect

    report = collect(check_kernels=kernels)
    if as_json:
        print(json.dumps(report, indent=2, default=str))
        return
    _show(report)


def _show(report: Mapping[str, Any]) -> None:
    from wsss_rt.doctor import problems
    from wsss_rt.tables import print_table

    python, own = report["python"], report["wsss_rt"]
    lines = [
        ("wsss-rt", f"{own['version']} in {own['folder']}"),
        ("python", f"{python['version']} ({python['executable']}), {python['system']}"),
        ("processor", _or_reason(report["processor"], _processor)),
        ("tiles", _or_reason(report["tiles"], _tiles)),
        ("memory", _or_reason(report["memory"], _memory)),
        ("gpu", _or_reason(report["gpu"], _gpus)),
        ("onnxruntime", _or_reason(report["engines"]["onnxruntime"], ", ".join)),
        ("openvino", _or_reason(report["engines"]["openvino"], _devices)),
        ("tensorrt", _or_reason(report["engines"]["tensorrt"], _lacks)),
        ("aotinductor", _or_reason(report["engines"]["aotinductor"], _lacks)),
        ("kernels", _or_reason(report["kernels"], _kernels)),
        ("codecs", _or_reason(report["codecs"], _codecs)),
        ("models", _or_reason(report["models"], _models)),
        ("cache", _or_reason(report["cache"], lambda cache: str(cache["folder"]))),
    ]
    for name, text in lines:
        print(f"{name:<12}{text}")
    print()
    if taken := report["kernels"].get("kernels"):
        rows = [[name, entry["path"], entry["reason"]] for name, entry in taken.items()]
        print_table("kernels", ("operator", "runs", "why"), rows, left=3)
        print()
    rows = [[name, state["version"] or "-", _state(state)] for name, state in report["packages"].items()]
    print_table("packages", ("package", "version", "state"), rows, left=3)
    print()
    rows = [
        [name, "ready" if state["ready"] else "needs " + ", ".join(state["missing"]), state["fix"]]
        for name, state in report["commands"].items()
    ]
    print_table("commands", ("command", "state", "how to get it"), rows, left=3)
    for line in problems(report):
        print(f"\nproblem: {line}", end="")
    if problems(report):
        print()


def _or_reason(value: Any, show: Any) -> str:
    if isinstance(value, Mapping) and set(value) == {"error"}:
        return f"unknown, {value['error']}"
    return str(show(value))


def _processor(value: Mapping[str, Any]) -> str:
    features = ", ".join(value["features"]) or "no known extensions"
    return f"{value['name']}, {value['usable']} of {value['present']} usable, {features}"


def _tiles(value: Mapping[str, Any]) -> str:
    return "attention in bfloat16 runs in AMX tiles" if value["usable"] else f"not used: {value['why']}"


def _memory(value: Mapping[str, Any]) -> str:
    parts = [f"{value['total_bytes'] / 2**30:.1f} GiB"]
    if "available_bytes" in value:
        parts.append(f"{value['available_bytes'] / 2**30:.1f} GiB free")
    if "limit_bytes" in value:
        parts.append(f"limited to {value['limit_bytes'] / 2**30:.1f} GiB")
    return ", ".join(parts)


def _gpus(value: list[Mapping[str, str]]) -> str:
    return "; ".join(", ".join(gpu.values()) for gpu in value) or "none found (nvidia-smi)"


def _devices(value: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({title})" for name, title in value.items()) or "no device"


def _lacks(value: Mapping[str, Any]) -> str:
    return "ready" if value["ready"] else "not ready: " + "; ".join(value["lacks"])


def _kernels(value: Mapping[str, Any]) -> str:
    if value["hindrance"]:
        return f"PyTorch in their place: {value['hindrance']}"
    taken = sum(entry["path"] == "triton" for entry in value["kernels"].values())
    return f"{taken} of {len(value['kernels'])} run on {value['identity']['device']}, see below"


def _codecs(value: Mapping[str, bool]) -> str:
    return ", ".join(name if there else f"no {name}" for name, there in value.items())


def _models(value: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({state})" for name, state in value.items()) or "none embedded"


def _state(state: Mapping[str, Any]) -> str:
    if state["state"] == "missing":
        return "missing" if state["needed"] else "not installed, optional"
    return f"{state['state']}: {state['reason']}" if "reason" in state else str(state["state"])
