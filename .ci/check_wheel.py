"""Import every module of the installed package, so that nothing is missing from the wheel.

Usage: python check_wheel.py runtime|all, from a folder that is no checkout. ``runtime`` leaves out what needs
PyTorch, and checks that nothing else asks for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys

import wsss_rt

NEEDS_TORCH = ("wsss_rt.training", "wsss_rt.export", "wsss_rt.kernels", "wsss_rt.engines.aotinductor")
# what the wheel must hold beside code
FILES = {"wsss_rt": "py.typed", "wsss_rt.assets": ".onnx", "wsss_rt.training.recipes": ".toml"}


def module_names(package: str, paths: list[str]) -> list[str]:
    """Dotted names of all modules below a package, without importing them."""
    names = []
    for found in pkgutil.iter_modules(paths, package + "."):
        names.append(found.name)
        if found.ispkg:
            # the finder's own question: importlib's would import the packages above
            spec = found.module_finder.find_spec(found.name)
            names += module_names(found.name, list(spec.submodule_search_locations or []))
    return names


def main() -> None:
    """Import and report; ends with 1 where something is missing."""
    scope = sys.argv[1]
    if "site-packages" not in str(wsss_rt.__file__) and "site" not in str(wsss_rt.__file__):
        sys.exit(f"this imports a checkout, not the wheel: {wsss_rt.__file__}")
    names = module_names("wsss_rt", list(wsss_rt.__path__))
    for name in names:
        if scope == "runtime" and name.startswith(NEEDS_TORCH):
            continue
        importlib.import_module(name)
    if scope == "runtime" and "torch" in sys.modules:
        sys.exit("the runtime imported torch")
    for package, ending in FILES.items():
        spec = importlib.util.find_spec(package)
        folder = list(spec.submodule_search_locations)[0]
        if not any(name.endswith(ending) for name in os.listdir(folder)):
            sys.exit(f"no {ending} in {package} of the wheel")
    for needed in (*NEEDS_TORCH, "wsss_rt.cli.label", "wsss_rt.formats.coco"):
        if needed not in names:
            sys.exit(f"{needed} is not in the wheel")
    print(f"{len(names)} modules of the wheel import ({scope})")


if __name__ == "__main__":
    main()
