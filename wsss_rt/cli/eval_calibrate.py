"""``wsss-rt eval --calibrate``: which settings give masks of a precision; writes them for ``label``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_rt.errors import UsageError, WsssError

if TYPE_CHECKING:
    from wsss_rt.calibration import Calibration, CalibrationRequest
    from wsss_rt.pairing import MaskFolder


def request(predicted: MaskFolder, maps: Path | None, target: float | None) -> CalibrationRequest:
    """What the options ask for.

    Args:
        predicted: what is judged; the run.json of an output folder tells the refiner.
        maps: another folder of maps, or None for the one beside the masks.
        target: None takes the default.

    Raises:
        UsageError: no such folder, or a precision that is none.
    """
    from wsss_rt.calibration import DEFAULT_TARGET, CalibrationRequest

    chosen = DEFAULT_TARGET if target is None else target
    if not 0 < chosen < 1:
        raise UsageError(f"--target {chosen:g} is not between 0 and 1", why="it is a share of the pixels")
    folder = predicted.root if maps is None else maps
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}", fix="write maps with `wsss-rt label --format npz`")
    identity = (_run(predicted) or {}).get("identity", {})
    return CalibrationRequest(folder, chosen, identity.get("refine", "none") != "none")


def write(calibration: Calibration, out: Path, predicted: MaskFolder, truth: MaskFolder, maps: Path) -> None:
    """Write the settings, with where they come from.

    Raises:
        WsssError: no threshold reaches the precision.
    """
    from wsss_rt.calibration import as_toml
    from wsss_rt.io.atomic import write_atomic

    if calibration.band() is None:
        best = [
            max((value for value in curve if value == value), default=0.0)
            for curve in (calibration.class_precision, calibration.background_precision)
        ]
        raise WsssError(
            f"no threshold gives classes and background a precision of {calibration.target:g}",
            why=f"these maps reach {best[0]:.2f} for classes and {best[1]:.2f} for background",
            fix="lower --target, or improve the maps",
            code="target_out_of_reach",
        )
    origin = {"maps": maps, "truth": truth.folder, "run": (_run(predicted) or {}).get("config_hash")}
    write_atomic(out, as_toml(calibration, origin).encode("utf-8", "backslashreplace"))


def show(calibration: Calibration, out: Path) -> None:
    """Print the curves, and what was written."""
    from wsss_rt.tables import percent, print_table

    curves = (
        calibration.class_precision,
        calibration.class_coverage,
        calibration.background_precision,
        calibration.background_coverage,
    )
    rows = [
        [f"{calibration.thresholds[index]:.2f}", *(percent(curve[index]) for curve in curves)]
        for index in range(0, len(calibration.thresholds), 50)
    ]
    header = ("best class score", "class precision %", "coverage %", "background precision %", "coverage %")
    print()
    print_table("from the score on: class; below it: background", header, rows)
    settings = ", ".join(f"{name} {value}" for name, value in calibration.settings().items())
    print(f"suggested        {settings or 'no change'}   ({percent(calibration.kept())} % keep a label)")
    print(f"wrote {out}; use it with `wsss-rt label --config {out}`")


def _run(predicted: MaskFolder) -> dict[str, Any] | None:
    from wsss_rt.run_record import read_run

    root = predicted.root if (predicted.root / "run.json").exists() else predicted.root.absolute().parent
    return read_run(root)
