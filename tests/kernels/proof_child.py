"""A process that stands where the child of ``wsss_rt.kernels.proof`` stands, and ends in every way one can.

    python proof_child.py '{"random_walk": "SIGKILL", ...}' LOG NAME...

Names that the table lacks pass; each that is begun is added to the log.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any


def say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def end(name: str, passed: bool = True, reason: str = "2.00 times the reference's speed") -> None:
    say(end=name, passed=passed, reason=reason, figures={"reference_ms": 2.0, "triton_ms": 1.0})


def main(table: dict[str, str], log: str, names: list[str]) -> None:
    for name in names:
        action = table.get(name, "pass")
        if action == "never begins":
            print("the libraries do not load", file=sys.stderr)
            sys.exit(4)
        with open(log, "a") as file:
            file.write(f"{name}\n")
        say(begin=name)
        if action.startswith("SIG"):
            print(
                "compiling\nCUDA error: an illegal memory access was encountered", file=sys.stderr, flush=True
            )
            os.kill(os.getpid(), getattr(signal, action))
        elif action == "hang":
            time.sleep(600)
        elif action == "rubbish":
            say(begin=[name], end={})
            say(end=name, passed=True, reason="", figures={"error": 10**400})
            # no UTF-8, no end of line for long, a torn line, and JSON that is no answer
            os.write(1, b"\xff\xfe" + b"x" * 200_000 + b'\n[1, 2]\n{"end": "' + name.encode())
            os.write(1, b'"}\n{"end": "' + name.encode() + b'", "passed": "yes"}\n{"passed": tr')
            sys.exit(0)
        elif action == "leaves":
            sys.exit(7)
        elif action == "slow":
            time.sleep(0.5)
            end(name)
        elif action == "raises":
            end(name, False, "RuntimeError: CUDA error: an illegal memory access was encountered")
            sys.exit(1)
        elif action == "slower":
            end(name, False, "slower: 0.80 times the reference's speed")
        else:
            end(name)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2], sys.argv[3:])
