"""``python -m wsss_rt.kernels.proof [--device cuda:0] [--json] [--show]``: check every kernel on a GPU anew.

Ends with 0 where every kernel is right, slower ones included; 1 where one is not, or none could be checked.
"""

from __future__ import annotations

import argparse
import json
import sys

from wsss_rt.errors import WsssError
from wsss_rt.kernels import _proven
from wsss_rt.kernels.proof import ensure_proof, hindrance, settled, standing


def main() -> int:
    """Check, print, and say whether all is right."""
    parser = argparse.ArgumentParser(prog="python -m wsss_rt.kernels.proof", description=__doc__)
    parser.add_argument("--device", default="cuda", help="such as cuda:1; the current GPU by default")
    parser.add_argument("--json", action="store_true", help="print everything that was found")
    parser.add_argument("--show", action="store_true", help="show what is known, and check nothing")
    options = parser.parse_args()
    device = settled(options.device)
    why = hindrance(device)
    found = standing(device) if options.show or why is not None else ensure_proof(device, anew=True)
    outcomes = {} if why is not None else _proven.known(device)
    if options.json:
        identity = {} if why is not None else dict(_proven.identity(device))
        figures = {name: dict(outcomes[name].figures) for name in found if name in outcomes}
        kernels = {name: {**found[name].as_dict(), "figures": figures.get(name, {})} for name in found}
        print(json.dumps({"hindrance": why, "identity": identity, "kernels": kernels}, indent=1))
    elif why is not None:
        print(f"no kernel can be checked: {why}")
    else:
        for name, entry in found.items():
            print(f"{name:<32}{entry.path:<11}{entry.reason}")
    right = all(name in outcomes and "reference_ms" in outcomes[name].figures for name in found)
    return int(why is not None or not (options.show or right))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except WsssError as error:
        sys.exit(f"error: {error}")
