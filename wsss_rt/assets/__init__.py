"""Models that ship inside the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from wsss_rt.errors import UsageError, WsssError, nearest


def embedded_models() -> dict[str, Path]:
    """Name to path of the models in this package, the newest last.

    A name ends in its version (``scenes-v2``), so the order of names is the order of age.
    """
    # an installed package of ours is always a real folder: engines map the file
    folder = Path(str(resources.files(__name__)))
    return {path.stem: path for path in sorted(folder.glob("*.onnx"), key=_age)}


def _age(path: Path) -> tuple[list[int], str]:
    digits = "".join(char if char.isdigit() else " " for char in path.stem)
    return [int(number) for number in digits.split()], path.stem


def find_model(model: str | Path | None = None) -> Path:
    """Path of a model.

    Args:
        model: a file, or the name of an embedded model; None takes the newest embedded one.

    Raises:
        WsssError: None is embedded and none was named, or the file does not exist.
        UsageError: no such name.
    """
    embedded = embedded_models()
    if model is None:
        if not embedded:
            raise WsssError(
                "no model is embedded in this installation",
                fix="name one with --model FILE; `wsss-rt export` writes such files",
                code="no_model",
            )
        return list(embedded.values())[-1]
    name = str(model)
    if name in embedded:
        return embedded[name]
    path = Path(model)
    if path.exists():
        return path
    if isinstance(model, Path) or path.suffix or len(path.parts) > 1:
        raise WsssError(
            f"there is no model file {name}",
            fix="see `wsss-rt models` for what is installed",
            code="model_unreadable",
        )
    known = nearest(name, embedded) if embedded else "no model is embedded in this installation"
    raise UsageError(f"no model named {name!r}", fix=known)
