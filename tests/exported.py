"""A small MCTformer-V2 and its artifact, exported once for all tests that need a real graph."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from wsss_rt.export.onnx import ExportReport, export_onnx
from wsss_rt.model_card import InputSpec, Recommended
from wsss_rt.training.checkpoints import RunConfig, load_run, save_run
from wsss_rt.training.models import Localizer, create_model

CLASSES = ("ant", "bee", "cat", "dog")
# the grid that the positions were learned on, non-square, odd, one token row, larger
SIZES = ((64, 64), (64, 71), (37, 90), (9, 150), (121, 83))


@dataclass(frozen=True)
class Exported:
    """The run folder, the model in it, and what export made of it."""

    run: Path
    model: Localizer
    config: RunConfig
    path: Path
    report: ExportReport


def tiny_model(seed: int = 0) -> Localizer:
    """A model whose weights are large enough that maps, scores and masks differ from image to image."""
    torch.manual_seed(seed)
    model = create_model(
        "mctformer-v2", num_classes=len(CLASSES), backbone="vit_test_tiny", img_size=64, layers_fused=2
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def tiny_config() -> RunConfig:
    """Config of :func:`tiny_model`, with values that a card must carry on."""
    return RunConfig(
        method="mctformer-v2",
        classes=CLASSES,
        model={"backbone": "vit_test_tiny", "img_size": 64, "layers_fused": 2},
        input=InputSpec(patch=8, size_policy="short_side", size=96),
        training={"data": "/home/someone/photos", "seed": 3},
        quality={"miou": 0.5},
        recommended=Recommended(background=0.3, tag_thresholds=(0.5,) * 4, provenance="made for tests"),
    )


@lru_cache(maxsize=1)
def saved_run() -> Path:
    """The tiny model as a run folder."""
    folder = Path(tempfile.mkdtemp(prefix="wsss-rt-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    save_run(folder / "run", tiny_model(), tiny_config())
    return folder / "run"


@lru_cache(maxsize=1)
def exported() -> Exported:
    """The tiny model as a run folder and as an artifact that passed the gate."""
    run = saved_run()
    model, config = load_run(run)
    path = run.parent / "out" / "tiny.onnx"
    report = export_onnx(model, config, path)
    assert isinstance(model, Localizer)
    return Exported(run, model, config, path, report)
