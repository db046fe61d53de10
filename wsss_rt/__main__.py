"""``python -m wsss_rt`` is the same as ``wsss-rt``."""

from __future__ import annotations

from wsss_rt.cli.app import main

if __name__ == "__main__":
    main()
