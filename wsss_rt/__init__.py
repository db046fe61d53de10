"""wsss-rt: image-level tags to pixel masks, without PyTorch at run time.

Public names load lazily, so that ``import wsss_rt`` costs nothing::

    from wsss_rt import Labeler
    for result in Labeler().stream(["./images"]):
        print(result.relative, result.error or result.tags)
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsss_rt.engines import open_engine
    from wsss_rt.labeler import Labeler
    from wsss_rt.results import Result

__version__ = "0.1.0"
__all__ = ["Labeler", "Result", "__version__", "open_engine"]

_HOMES = {
    "Labeler": "wsss_rt.labeler",
    "Result": "wsss_rt.results",
    "open_engine": "wsss_rt.engines",
}

# in a checkout that was never installed, `wsss_rt.training` and its siblings lie at the root beside us
_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "pyproject.toml").is_file() and (_ROOT / "training").is_dir():
    __path__.append(str(_ROOT))


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'wsss_rt' has no attribute {name!r}")
