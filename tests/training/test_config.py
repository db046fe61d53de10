"""Recipes, flags and their precedence; wrong keys and values get the nearest right one."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

import pytest

from tests.cli.label_runs import Cli
from wsss_rt.errors import UsageError
from wsss_rt.training.config import (
    Augment,
    Optimizer,
    build_config,
    differences,
    parse_settings,
    read_recipe,
    recipe_names,
    to_toml,
)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line in this process; test_fit.py trains in a process of its own."""
    return Cli(tmp_path, monkeypatch, capsys)


def test_flag_wins_over_recipe_wins_over_default(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[optim]\nlr = 0.25\nema = 0.5\n[model.options]\nlayers_fused = 3\n")
    config = build_config("mctformer-v2", recipe=recipe, flags={"optim.lr": 0.125, "run.seed": None})
    assert (config.optim.lr, config.optim.ema, config.optim.weight_decay) == (0.125, 0.5, 0.05)
    assert config.model.options == {"layers_fused": 3}
    assert config.recipe == "mine.toml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optim]\nlearnin_rate = 1.0\n", "unknown key 'optim.learnin_rate'"),
        ("[optim]\nwarmup_epoch = 1\n", "did you mean 'warmup_epochs'"),
        ("[otpim]\nlr = 1.0\n", "did you mean 'optim'"),
        ("lr = 1.0\n", "'lr' stands outside a section"),
        ("[run]\nbatch = 'many'\n", "run.batch = 'many' is a str"),
        ("[run]\nbatch = true\n", "run.batch = True is a bool"),
        ("[run]\nprecision = 'bf16-mix'\n", "did you mean 'bf16-mixed'"),
        ("[data]\naugment = 'ofical'\n", "did you mean 'official'"),
        ("[data]\ncrop_scale = [0.0, 1.0]\n", "crop_scale"),
        ("[data]\nsizes = [[64]]\n", "[height, width]"),
        ("[optim]\nema = 1.0\n", "optim.ema"),
        ("[optim]\nmomentum = 1.5\n", "optim.momentum"),
        ("[optim]\noptimizer = 'sdg'\n", "did you mean 'sgd'"),
        ("[optim]\nschedule = 'steps'\n", "optim.step_epochs = [15]"),
        ("[optim]\nstep_epochs = [0]\n", "counted from 1"),
        ("[data]\nlayout = 'cocoo'\n", "did you mean 'coco'"),
        ("[optim\n", "not valid TOML"),
    ],
)
def test_wrong_recipes_say_where(tmp_path: Path, text: str, message: str) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(text)
    with pytest.raises(UsageError) as caught:
        build_config("mctformer-v2", recipe=recipe)
    assert message in str(caught.value)
    # values that are wrong only together are found once everything is read, and then name the key alone
    assert any(place in str(caught.value) for place in ("r.toml", "optim.", "data.crop_scale", "data.sizes"))


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'scenes-small'"):
        build_config("mctformer-v2", recipe="scene-small")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_reads_and_prints_and_reads_again(name: str, tmp_path: Path) -> None:
    config = build_config(method_of(name), recipe=name)
    printed = tmp_path / f"{name}.toml"
    printed.write_text(to_toml(config))
    again = build_config(config.method, recipe=printed)
    assert differences(config.to_dict(), again.to_dict()) == []
    assert config.run.images or config.run.epochs


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_fits_the_method_it_is_for(name: str) -> None:
    from wsss_rt.training.setup import check_model

    for method in read_recipe(name)[1].get("methods", ["mctformer-v2"]):
        config = build_config(method, recipe=name)
        if config.model.options.get("stage") == "cam":
            with pytest.raises(UsageError, match="the second stage starts from a first"):
                check_model(config)
            config = build_config(method, recipe=name, flags={"model.first_stage": "weights.safetensors"})
        if method == "psa":
            with pytest.raises(UsageError, match="--low-alpha"):
                check_model(config)
            planes = {"data.low_alpha": "la", "data.high_alpha": "ha"}
            config = build_config(method, recipe=name, flags=planes)
        if method in ("segvit", "segvit-shrunk", "conv-head"):
            with pytest.raises(UsageError, match="--masks"):
                check_model(config)
            config = build_config(method, recipe=name, flags={"data.masks": "masks"})
        check_model(config)


def method_of(recipe: str) -> str:
    return str(read_recipe(recipe)[1].get("methods", ["mctformer-v2"])[0])


def test_a_recipe_for_another_method_is_refused() -> None:
    with pytest.raises(UsageError, match="voc-acr-official is not for mctformer-v2. it is for acr"):
        build_config("mctformer-v2", recipe="voc-acr-official")


def test_official_recipes_say_where_facts_come_from_and_what_is_off() -> None:
    folder = resources.files("wsss_rt.training.recipes")
    names = [name for name in recipe_names() if "official" in name]
    assert {"coco-official", "cub-official", "ilsvrc-official", "voc-official"} <= set(names)
    for name in names:
        header = folder.joinpath(f"{name}.toml").read_text().split("description")[0]
        assert header.startswith("# For "), name
        assert "official" in header and ("accident" in header or "Accident" in header), name
    for name, batch, steps in (("cub", 128, [30]), ("ilsvrc", 256, [10, 12])):
        config = build_config("ts-cam", recipe=f"{name}-official-ts-cam")
        assert config.model.options["loss"] == "cross_entropy"
        assert (config.run.batch, config.optim.step_epochs) == (batch, steps)
    accident = build_config("acr", recipe="voc-acr-published")
    assert accident.optim.optimizer is Optimizer.SGD_DECAY_AS_MOMENTUM
    assert (accident.run.batch, accident.run.devices, accident.run.images) == (1, "1", 26450)
    assert build_config("acr", recipe="voc-acr-official").optim.optimizer is Optimizer.SGD


def test_a_state_older_than_a_key_had_its_default() -> None:
    new = build_config("mctformer-v2").to_dict()
    old = {**new, "optim": {key: value for key, value in new["optim"].items() if key != "optimizer"}}
    assert differences(old, new) == []
    changed = build_config("mctformer-v2", flags={"optim.optimizer": "sgd"}).to_dict()
    assert differences(old, changed) == ["optim.optimizer: adamw -> sgd"]


def test_settings_are_toml_or_text() -> None:
    assert parse_settings(["a.b=1e-3", "c.d=true", "e.f=official", "g.h=[1, 2]", "i.j=x=y"]) == {
        "a.b": 1e-3, "c.d": True, "e.f": "official", "g.h": [1, 2], "i.j": "x=y",
    }  # fmt: skip
    with pytest.raises(UsageError, match="has no '='"):
        parse_settings(["optim.lr"])


def test_what_may_change_between_a_run_and_its_continuation() -> None:
    one = build_config("mctformer-v2", flags={"data.workers": 1, "optim.lr": 0.5}).to_dict()
    two = build_config("mctformer-v2", flags={"data.workers": 2, "optim.lr": 0.25}).to_dict()
    assert differences(one, two) == ["optim.lr: 0.5 -> 0.25"]


def test_print_config_is_a_recipe(cli: Cli) -> None:
    words = ("--data", "scenes", "--recipe", "scenes-small", "--lr", "0.5", "--print-config")
    done = cli("train", "mctformer-v2", *words)
    assert done.code == 0, done.err
    raw = tomllib.loads(done.out)
    assert raw["optim"]["lr"] == 0.5 and raw["data"]["source"] == "scenes"
    assert raw["model"]["backbone"] == "vit_scene_hybrid8_160"
    assert Augment(raw["data"]["augment"]) is Augment.FLIP


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mctformer-v2", "--recipe", "scenes-smal", "--print-config"], "did you mean 'scenes-small'"),
        (["mctformer-v2", "--set", "optim.lrr=1", "--print-config"], "did you mean 'lr'"),
        (["mctformer-v2", "--epochs", "1", "--images", "5"], "exclude each other"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(cli: Cli, arguments: list[str], message: str) -> None:
    done = cli("train", *arguments)
    assert done.code == 2
    assert message in done.err and "Traceback" not in done.err
    assert len(done.err.strip().splitlines()) == 1
