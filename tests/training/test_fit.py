"""Training end to end on the tiny backbone: what the run folder holds, resuming, stopping, learning."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.builders import SIDE, make_folder, make_voc_tree, tiny_config
from wsss_rt.classes import SCENE_CLASSES
from wsss_rt.errors import UsageError, WsssError
from wsss_rt.training.checkpoints import load_run
from wsss_rt.training.config import TrainConfig
from wsss_rt.training.data.build import TrainingData, build_data
from wsss_rt.training.data.sources import Sample, Source
from wsss_rt.training.fit import FitResult, fit
from wsss_rt.training.interrupt import Interrupted
from wsss_rt.training.journal import read_log
from wsss_rt.training.resume import is_finished
from wsss_rt.training.setup import check_model, planned_images

ROOT = Path(__file__).parents[2]


def open_data(config: TrainConfig) -> TrainingData:
    return build_data(config.data, seed=config.run.seed)


def train(config: TrainConfig, out: Path, **options: Any) -> FitResult:
    return fit(config, open_data(config), out, **options)


class Interrupting:
    """A source that sends this process a signal when a sample is asked for the n-th time."""

    def __init__(self, source: Source, *, after: int, number: int) -> None:
        self.count, self.has_masks = source.count, source.has_masks
        self._source, self._left, self._number = source, after, number

    def load(self, index: int, *, size: tuple[int, int] | None = None, mask: bool = False) -> Sample:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._number)
        return self._source.load(index, size=size, mask=mask)


def train_interrupted(
    config: TrainConfig, out: Path, *, after: int, number: int = signal.SIGTERM
) -> Interrupted:
    data = open_data(config)
    data = replace(data, train=Interrupting(data.train, after=after, number=number))
    with pytest.raises(Interrupted) as caught:
        fit(config, data, out)
    return caught.value


def test_scenes_train_to_a_complete_run_folder(tmp_path: Path) -> None:
    config = tiny_config("scenes", run__validate_every=8, optim__ema=0.9, model__options={"layers_fused": 2})
    result = train(config, tmp_path / "run")
    assert result.images == 16
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "weights.safetensors", "config.json", "recommended.json", "log.jsonl", "curve.png",
    }  # fmt: skip
    model, run = load_run(tmp_path / "run")
    assert run.method == "mctformer-v2" and run.classes == SCENE_CLASSES
    assert run.model["layers_fused"] == 2 and not model.training
    assert run.training["images_seen"] == 16 and run.training["config"]["run"]["seed"] == 0
    assert {"torch", "timm", "wsss-rt"} <= run.training["versions"].keys()
    assert 0 <= run.quality["validation"]["map"] <= 1
    assert (
        len(run.recommended.tag_thresholds) == 10
        and "4 images of validation scenes" in run.recommended.provenance
    )
    assert all(getattr(model, key) == value for key, value in run.recommended_options.items())
    with Image.open(tmp_path / "run" / "curve.png") as picture:
        assert picture.width > 400
        assert np.asarray(picture.convert("L")).std() > 5
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert [entry["images"] for entry in log if entry["kind"] == "train"] == [4, 8, 12, 16]
    assert [entry["images"] for entry in log if entry["kind"] == "validation"] == [8, 16]
    assert set(log[0]["losses"]) == {"class", "patch"}


def test_own_folder_and_voc_tree_train_too(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", 12)
    train(tiny_config(folder, data__classes="scenes", run__images=8, data__augment="light"), tmp_path / "a")
    _, run = load_run(tmp_path / "a")
    assert run.training["images"]["used"] == 11 and "miou" not in run.quality["validation"]
    assert "background not tuned" in run.recommended.provenance

    tree = make_voc_tree(tmp_path / "voc", 8, held_out=3)
    train(
        tiny_config(tree, run__images=8, data__augment="official", data__crop_scale=[0.3, 1.0]),
        tmp_path / "b",
    )
    _, run = load_run(tmp_path / "b")
    assert run.training["validation_split"] == "val"
    assert set(run.quality["validation"]["miou"]) == {
        f"{kind}{suffix}"
        for kind in ("attention", "patchcam", "fused")
        for suffix in ("", "+affinity", "+similarity")
    }


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(tiny_config("scenes", run__seed=seed, run__images=8, data__val_images=0), tmp_path / name)
        weights.append((tmp_path / name / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_a_signal_to_the_whole_process_group_saves_the_state(tmp_path: Path) -> None:
    # `timeout` and job schedulers signal loader workers too: their end must not be the run's
    out = tmp_path / "run"
    program = "import sys; from wsss_rt.cli.app import main; sys.exit(main())"
    arguments = (
        "train", "mctformer-v2", "--data", "scenes", "--backbone", "vit_test_tiny", "--images", "100000",
        "--out", out, "--set", "model.img_size=64", "--set", "data.workers=2", "--set", "data.val_images=0",
        "--set", "run.log_seconds=0.1",
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 900  # importing torch has taken minutes on busy machines
    while not (out / "log.jsonl").is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=900)[1]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "Traceback" not in said and "the same command continues" in said
    assert (out / "state.pt").is_file()


def test_a_stopped_run_resumes_to_the_very_same_weights(tmp_path: Path) -> None:
    tree = make_voc_tree(tmp_path / "voc", 9, held_out=2)
    config = tiny_config(
        tree, run__images=48, optim__ema=0.9, optim__accumulate=2, optim__warmup_images=8,
        optim__grad_clip=1.0, data__augment="light", data__sizes=[[64, 64], [64, 80]], data__val_images=2,
        model__options={"drop_path": 0.3},
    )  # fmt: skip
    train(config, tmp_path / "whole")
    stopped = train_interrupted(config, tmp_path / "parts", after=14)
    assert stopped.exit_code == 128 + signal.SIGTERM
    assert "stopped after 16 of 48 images" in str(stopped) and "the same command continues" in str(stopped)
    assert (tmp_path / "parts" / "state.pt").is_file()
    train_interrupted(config, tmp_path / "parts", after=9, number=signal.SIGINT)
    said: list[str] = []
    train(config, tmp_path / "parts", say=said.append)
    assert "continuing from the saved state at image 32 of 48" in said
    whole, parts = (tmp_path / name / "weights.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
    assert not (tmp_path / "parts" / "state.pt").exists()
    _, one = load_run(tmp_path / "whole")
    _, two = load_run(tmp_path / "parts")
    assert one.recommended == two.recommended and one.quality == two.quality
    seen = [
        entry["images"] for entry in read_log(tmp_path / "parts" / "log.jsonl") if entry["kind"] == "train"
    ]
    assert seen == [8, 16, 24, 32, 40, 48]


def test_resuming_refuses_other_settings_and_other_data(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", 8)
    config = tiny_config(folder, data__classes="scenes", data__val_images=0)
    train_interrupted(config, tmp_path / "run", after=5)
    state = (tmp_path / "run" / "state.pt").read_bytes()
    with pytest.raises(WsssError, match=r"optim\.lr: 0\.0005 -> 0\.25.*--no-resume"):
        train(replace(config, optim=replace(config.optim, lr=0.25)), tmp_path / "run")
    (folder / "labels.csv").write_text(
        (folder / "labels.csv").read_text() + "00.jpg,waves;stars;rings;dots\n"
    )
    with pytest.raises(WsssError, match="the images or their tags changed"):
        train(config, tmp_path / "run")
    assert (tmp_path / "run" / "state.pt").read_bytes() == state
    assert train(config, tmp_path / "run", resume=False).images == 16


def test_a_finished_run_is_recognised(tmp_path: Path) -> None:
    config = tiny_config("scenes", run__images=4, data__val_images=0)
    data = open_data(config)
    assert not is_finished(tmp_path / "run", config, data.fingerprint)
    train(config, tmp_path / "run")
    assert is_finished(tmp_path / "run", config, data.fingerprint)
    with pytest.raises(WsssError, match=r"run\.images: 4 -> 8"):
        is_finished(tmp_path / "run", replace(config, run=replace(config.run, images=8)), data.fingerprint)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    config = tiny_config("scenes", data__val_images=0)
    train_interrupted(config, tmp_path / "run", after=5)
    path = tmp_path / "run" / "state.pt"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(WsssError, match=r"cannot resume from .*state\.pt.*--no-resume"):
        train(config, tmp_path / "run")


def test_a_handful_of_images_is_learned_by_heart(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", 4)
    config = tiny_config(
        folder, data__classes="scenes", data__augment="none", data__val_images=0, run__images=400,
        optim__lr=3e-3, optim__warmup_images=20, model__options={"drop_path": 0.0},
    )  # fmt: skip
    train(config, tmp_path / "run")
    log = read_log(tmp_path / "run" / "log.jsonl")
    first, last = (sum(entry["losses"].values()) for entry in (log[0], log[-1]))
    assert last < 0.25 * first
    model, _ = load_run(tmp_path / "run")
    data = open_data(config)
    for index in range(4):
        sample = data.train.load(index)
        from wsss_rt.training.data.transforms import Augment, build_transform, normalise

        image = build_transform(Augment.NONE, (SIDE, SIDE), crop_scale=[1, 1])(sample.image)
        with torch.no_grad():
            scores = model.localize(normalise(image[None])).scores[0]  # type: ignore[operator]
        strongest = set(scores.topk(len(sample.tags)).indices.tolist())
        assert strongest == set(sample.tags)


def test_a_loss_that_is_not_a_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(WsssError, match="the loss is not a number after .*lower --lr") as caught:
        train(tiny_config("scenes", optim__lr=1e30, data__val_images=0, run__images=64), tmp_path / "run")
    assert caught.value.code == "nonfinite_loss"
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_mixed_precision_and_loader_processes_run(tmp_path: Path) -> None:
    config = tiny_config(
        "scenes", run__precision="bf16-mixed", data__workers=2, data__val_images=1, run__images=8
    )
    assert train(config, tmp_path / "run").images == 8
    _, run = load_run(tmp_path / "run")
    assert run.training["precision"] == "bf16-mixed"
    assert np.isfinite(run.quality["validation"]["map"])


def test_the_length_of_a_run() -> None:
    data = open_data(tiny_config("scenes"))
    assert planned_images(tiny_config("scenes", run__images=13), data) == 16
    with pytest.raises(UsageError, match="no epochs"):
        planned_images(tiny_config("scenes", run__images=0, run__epochs=2.0), data)
    with pytest.raises(UsageError, match="--images N or --epochs N"):
        planned_images(tiny_config("scenes", run__images=0), data)


def test_names_of_the_model_are_checked_first() -> None:
    config = tiny_config("scenes")
    with pytest.raises(UsageError, match="did you mean 'mctformer-v2'"):
        check_model(replace(config, method="mctformer-v3"))
    with pytest.raises(UsageError, match="did you mean 'layers_fused'"):
        check_model(tiny_config("scenes", model__options={"layer_fused": 3}))
    with pytest.raises(UsageError, match="did you mean 'vit_test_tiny'"):
        check_model(tiny_config("scenes", model__backbone="vit_tst_tiny"))


def test_config_json_is_readable_by_people_and_programs(tmp_path: Path) -> None:
    train(tiny_config("scenes", run__images=4, data__val_images=0), tmp_path / "run")
    raw = json.loads((tmp_path / "run" / "config.json").read_text())
    assert raw["input"]["patch"] == 8 and raw["model"]["backbone"] == "vit_test_tiny"
    assert raw["training"]["data"] == "synthetic scenes"
