"""Recipes, flags and their precedence; wrong keys and values get the nearest right one."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from wsss_rt.errors import UsageError
from wsss_rt.training.config import (
    Augment,
    build_config,
    differences,
    parse_settings,
    recipe_names,
    to_toml,
)


def run_train(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsss_rt", "train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


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
    assert any(
        place in str(caught.value) for place in ("r.toml", "optim.ema", "data.crop_scale", "data.sizes")
    )


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'scenes-small'"):
        build_config("mctformer-v2", recipe="scene-small")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_reads_and_prints_and_reads_again(name: str, tmp_path: Path) -> None:
    config = build_config("mctformer-v2", recipe=name)
    printed = tmp_path / f"{name}.toml"
    printed.write_text(to_toml(config))
    again = build_config("mctformer-v2", recipe=printed)
    assert differences(config.to_dict(), again.to_dict()) == []
    assert config.run.images or config.run.epochs


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_fits_the_method_it_is_for(name: str) -> None:
    from wsss_rt.training.setup import check_model

    check_model(build_config("mctformer-v2", recipe=name))


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


def test_print_config_is_a_recipe() -> None:
    done = run_train(
        "mctformer-v2", "--data", "scenes", "--recipe", "scenes-small", "--lr", "0.5", "--print-config"
    )
    assert done.returncode == 0, done.stderr
    raw = tomllib.loads(done.stdout)
    assert raw["optim"]["lr"] == 0.5 and raw["data"]["source"] == "scenes"
    assert raw["model"]["backbone"] == "vit_scene_hybrid8_160"
    assert Augment(raw["data"]["augment"]) is Augment.COLOR


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mctformer-v2", "--recipe", "scenes-smal", "--print-config"], "did you mean 'scenes-small'"),
        (["mctformer-v2", "--set", "optim.lrr=1", "--print-config"], "did you mean 'lr'"),
        (["mctformer-v2", "--epochs", "1", "--images", "5"], "exclude each other"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: list[str], message: str) -> None:
    done = run_train(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_without_torch_it_says_what_to_install(tmp_path: Path) -> None:
    # a finder that hides torch stands for a machine that never had it
    hide = "import sys\nclass F:\n    def find_spec(self, n, *a):\n        if n.split('.')[0] == 'torch':\n"
    hide += "            raise ModuleNotFoundError(n, name=n)\nsys.meta_path.insert(0, F())\n"
    code = (
        f"{hide}sys.argv = ['wsss-rt', 'train', 'mctformer-v2']\nfrom wsss_rt.cli.app import main\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "wsss-rt train needs torch" in done.stderr and "pip install 'wsss-rt[train]'" in done.stderr
