"""The engines that are measured: opened, called once, and held against float32 ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss_rt.benchmark.memory import peak_growth
from wsss_rt.engines import BACKENDS, PRECISIONS, open_engine
from wsss_rt.engines.backends import check_names, eligible, here, supports
from wsss_rt.engines.windows import windowed
from wsss_rt.errors import UsageError, WsssError, nearest
from wsss_rt.parity import LIMITS, ParityReport, ParityRow, compare

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsss_rt.engines.base import Engine
    from wsss_rt.gate_images import GateImages
    from wsss_rt.model_card import ModelCard

REFERENCE = ("onnxruntime", "float32")
AGAINST = "float32 ONNX Runtime"
# runs packages of compiled code, each a file of its own, in place of ONNX
PACKAGES = "aotinductor"
# runs one precision or two, image by image: what it takes is a matter of the images and of their masks
MIXED = "mixed"
NOT_ALONE = (
    f"{MIXED} is measured in the whole labeller only, where it is known which images run again in float32"
)


@dataclass
class Subject:
    """One engine, ready to be measured.

    Attributes:
        name: backend, precision and, where it is no CPU, device.
        engine: as the labeller would run it.
        file: name of the artifact that it runs.
        first_ms: by input shape (B, H, W), the first call, in which libraries choose and compile kernels.
        memory_bytes: what opening it and these calls took at their peak; None where the system does not tell.
        product_rate: FLOP/s of plain matrix products in its library; 0 until it is measured.
        parity: whether it does what float32 ONNX Runtime does; None until it is known.
    """

    name: str
    engine: Engine
    file: str
    first_ms: dict[tuple[int, int, int], float] = field(default_factory=dict)
    memory_bytes: int | None = None
    product_rate: float = 0.0
    parity: ParityReport | None = None

    @property
    def agrees(self) -> bool:
        """Whether its results may be used, so that its speed means anything."""
        return self.parity is not None and self.parity.passed

    @property
    def alone(self) -> bool:
        """Whether its model can be measured without the labeller; see :func:`wanted`."""
        return self.engine.precision != MIXED

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "file": self.file,
            "backend": self.engine.backend,
            "precision": self.engine.precision,
            "device": self.engine.device,
            "seconds": self.engine.choice.get("seconds", {}),
            "memory_bytes": self.memory_bytes,
            "product_flops_per_second": self.product_rate,
            "agreement": None if self.parity is None else agreement(self.parity),
        }


def agreement(parity: ParityReport) -> dict[str, Any]:
    """The comparison of one engine, for JSON and the table."""
    found: dict[str, Any] = {"against": parity.against, "images": parity.images, "passed": parity.passed}
    for row in parity.rows:
        found[row.output] = {"worst": row.worst, "mean": row.mean, "limit": row.limit, "passed": row.passed}
    return found


def wanted(
    backends: Sequence[str], precisions: Sequence[str], *, scope: str = "both"
) -> list[tuple[str, str]]:
    """Pairs of a backend and a precision, the reference first where it is among them, ``mixed`` last.

    Args:
        backends: empty for all that run ONNX files here.
        precisions: empty for all that these compute in.
        scope: ``model``, ``pipeline`` or ``both``.

    Raises:
        UsageError: an unknown name, ``mixed`` of the model alone, or packages' backend.
    """
    # int8 is another file, see quantized_pairs
    known_precisions = tuple(name for name in PRECISIONS if name not in ("auto", "int8"))
    for names, known, option in (
        (backends, BACKENDS, "backend"),
        (precisions, known_precisions, "precision"),
    ):
        for name in names:
            if name not in known:
                raise UsageError(f"no {option} {name!r}", fix=nearest(name, known))
    if PACKAGES in backends:
        raise UsageError(
            "AOTInductor does not run ONNX files",
            fix="give its package as MODEL, or beside the ONNX file: --package FILE.pt2",
        )
    if scope == "model":
        if MIXED in precisions:
            raise UsageError(
                f"there is no --precision {MIXED} of the model alone",
                why=NOT_ALONE,
                fix="use --scope pipeline",
            )
        known_precisions = tuple(name for name in known_precisions if name != MIXED)
    pairs = dict.fromkeys(product(backends or here(), precisions or known_precisions))
    # what was not asked for by name, and cannot be, is no row that anybody misses
    possible = [pair for pair in pairs if (backends and precisions) or supports(*pair)]
    return sorted(possible or pairs, key=lambda pair: (pair != REFERENCE, pair[1] == MIXED))


def quantized_pairs(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """What a quantised file is opened with beside these pairs: int8, and int8 with the rest in bfloat16."""
    found = dict.fromkeys((backend, "int8") for backend, _ in pairs)
    return [*found, *(pair for pair in pairs if pair == ("openvino", "bfloat16"))]


def package_pairs(
    card: ModelCard, backends: Sequence[str] = (), precisions: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """What a package is opened with: the one engine and precision that it was compiled for.

    Args:
        card: of the package.
        backends: that were asked for.
        precisions: likewise.

    Raises:
        UsageError: another one was asked for.
    """
    for backend, precision in product(backends or ("auto",), precisions or ("auto",)):
        check_names(backend, "auto", precision)
        eligible(backend, "auto", precision, card, package=True)
    return [(PACKAGES, card.precision)]


def open_subjects(
    model: Path,
    pairs: Iterable[tuple[str, str]],
    inputs: Sequence[NDArray[np.float32]],
    *,
    device: str,
    threads: int | None,
    tell: Callable[[str], None],
) -> tuple[list[Subject], dict[str, str]]:
    """Open what opens, and why the others don't.

    Args:
        model: the artifact.
        pairs: as :func:`wanted` gives them.
        inputs: (B, 3, H, W) of every shape that will be measured.
        device: as ``open_engine`` takes it.
        threads: as ``open_engine`` takes it.
        tell: gets a line before each.

    Raises:
        WsssError: none of them opens.
    """
    subjects: list[Subject] = []
    skipped: dict[str, str] = {}
    for backend, precision in pairs:
        name = f"{backend} {precision}"
        tell(f"opening {name}")
        with peak_growth() as growth:
            try:
                # judged below, and shown with its verdict
                engine = open_engine(
                    model,
                    backend=backend,
                    precision=precision,
                    device=device,
                    threads=threads,
                    cache=False,
                    gate=False,
                    tell=tell,
                )
            except WsssError as error:
                skipped[name] = str(error)
                continue
            name = f"{backend} {engine.precision}"
            if engine.device != "cpu":
                name = f"{name} {engine.device}"
            subject = Subject(name, windowed(engine), model.name)
            for images in inputs:
                started = time.perf_counter()
                subject.engine.infer(images)
                shape = (images.shape[0], images.shape[2], images.shape[3])
                subject.first_ms[shape] = 1e3 * (time.perf_counter() - started)
        subject.memory_bytes = growth.bytes
        subjects.append(subject)
    if not subjects:
        raise WsssError(
            "none of the engines can run the model",
            why="; ".join(f"{name}: {reason}" for name, reason in skipped.items()),
            fix="see `wsss-rt doctor`",
            code="no_backend",
        )
    return subjects, skipped


def judge(model: Path, subjects: Sequence[Subject], images: GateImages, *, threads: int | None) -> None:
    """Hold every engine against float32 ONNX Runtime on real images, and keep what was found.

    Raises:
        WsssError: ONNX Runtime cannot run the model.
    """
    cpu = [subject.engine for subject in subjects if subject.name == " ".join(REFERENCE)]
    reference = cpu[0] if cpu else _open_reference(model, threads)
    try:
        for subject in subjects:
            subject.parity = compare(
                reference.infer,
                {subject.name: subject.engine},
                images.images,
                card=subject.engine.card,
                limits=LIMITS[subject.engine.precision],
                source=images.source,
                against=AGAINST,
            )
    finally:
        if not cpu:
            reference.close()


def judge_package(subject: Subject) -> None:
    """Take what export found when it compiled a package: no engine here runs its graph in float32.

    ``parity`` stays None where export was told not to compare, or its record cannot be read.
    """
    found: Any = subject.engine.card.quality.get("parity")
    try:
        rows = tuple(
            ParityRow(subject.name, output, float(row["worst"]), float(row["mean"]), float(row["limit"]))
            for outputs in found["engines"].values()
            for output, row in outputs.items()
        )
        subject.parity = ParityReport(rows, found["images"], found["source"], {}, found["against"])
    except (KeyError, TypeError, ValueError, AttributeError):
        # "skipped", or the card of another version; what is not known to be right is shown as such
        subject.parity = None


def _open_reference(model: Path, threads: int | None) -> Engine:
    backend, precision = REFERENCE
    return windowed(
        open_engine(model, backend=backend, precision=precision, device="cpu", threads=threads, cache=False)
    )
