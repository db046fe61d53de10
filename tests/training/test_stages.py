"""The second of two stages begins with the first one's weights, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from wsss_rt.errors import UsageError, WsssError
from wsss_rt.training.config import TrainConfig, build_config
from wsss_rt.training.models import create_model
from wsss_rt.training.setup import model_arguments, new_model


def stage(name: str, method: str = "token-refinement", **flags: str) -> TrainConfig:
    settings = {"model.backbone": "vit_test_tiny", "model.img_size": 64, "model.options.stage": name}
    return build_config(method, flags=settings | {f"model.{key}": value for key, value in flags.items()})


def test_the_second_stage_starts_from_the_first(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = new_model(stage("tpsm"), num_classes=3)
    path = tmp_path / "weights.safetensors"
    save_file(first.state_dict(), path)
    config = stage("cam", first_stage=str(path))
    second = new_model(config, num_classes=3)
    state = second.state_dict()
    assert all(torch.equal(state[name], value) for name, value in first.state_dict().items())
    moving = {name for name, parameter in second.named_parameters() if parameter.requires_grad}
    assert moving and all(name.startswith("camfuse_block.") for name in moving)
    # whoever builds the model by its arguments alone would begin without the first stage
    with pytest.raises(UsageError, match="no option 'first_stage'"):
        create_model(config.method, num_classes=3, **model_arguments(config))
    with pytest.raises(WsssError, match="no weights at"):
        new_model(stage("cam", first_stage=str(tmp_path / "absent.safetensors")), num_classes=3)
    other = build_config(
        "mctformer-v2", flags={"model.backbone": "vit_test_tiny", "model.first_stage": str(path)}
    )
    with pytest.raises(UsageError, match="mctformer-v2 has no stages"):
        new_model(other, num_classes=3)
