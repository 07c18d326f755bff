from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from toy_settings import TypedSettings

from common.registry import check_origin
from common.settings import describe
from launch.execution.child import input_paths, settings_of
from launch.recipe.model import Model, Pretrain
from launch.recipe.recipe import Recipe
from launch.stages.generate import Benchmark, Eval


def test_settings_become_a_tree_and_what_the_schema_calls_a_mapping_stays_one():
    recipe = Recipe(
        model=Model(pretrain=Pretrain()),
        objective={"name": "sft", "nested": {"a": 1}},
        eval=Eval(benchmarks=[{"name": "target"}]),
        platform={"env": {"A": "b"}, "placement": {"rl": {"nodes": 2}}},
        data={"files": {"benchmarks": {"x": "y.jsonl"}}},
        rl={"verl": {"trainer": {"x": 1}}, "reward": {"settings": {"k": 1}}},
    )
    typed = TypedSettings(**dict(recipe), pretrain=Pretrain(), role="base")
    settings = settings_of(json.loads(json.dumps(describe(typed))))
    assert settings.objective == {"name": "sft", "nested": {"a": 1}}
    assert settings.rl.verl == {"trainer": {"x": 1}} and settings.rl.reward.settings == {"k": 1}
    assert settings.platform.env == {"A": "b"} and settings.data.files.benchmarks == {"x": "y.jsonl"}
    assert isinstance(settings.eval.benchmarks[0], Benchmark) and settings.eval.benchmarks[0].name == "target"
    assert settings.pretrain.layers == settings.model.pretrain.layers == 4 and settings.role == "base"
    assert settings.model.teacher.pretrain is None and settings.sft.betas == (0.9, 0.999)
    assert settings.rl.filter.enabled is False and settings.sft.lora is None


def test_a_package_from_elsewhere_is_refused(monkeypatch, tmp_path):
    check_origin()
    stranger = SimpleNamespace(__file__=str(tmp_path / "recipes" / "__init__.py"))
    monkeypatch.setitem(sys.modules, "recipes", stranger)
    with pytest.raises(ValueError, match="package recipes was imported from"):
        check_origin()


def test_a_model_from_outside_becomes_a_directory_with_the_chosen_eos(tmp_path):
    from data_prep.micro_world.tokenizer import END_OF_TEXT, build_tokenizer

    base = tmp_path / "base"
    build_tokenizer([], 64).save_pretrained(base)
    (base / "config.json").write_text("{}")
    models: dict[str, dict[str, str | None]] = {"model": {"revision": None, "eos": END_OF_TEXT}}
    found = input_paths({"model": str(base), "data": "elsewhere"}, models, tmp_path / "scratch")
    assert found["data"] == Path("elsewhere")
    assert json.loads((found["model"] / "tokenizer_config.json").read_text())["eos_token"] == END_OF_TEXT
    models["model"]["eos"] = None
    assert input_paths({"model": str(base)}, models, tmp_path / "scratch")["model"] == base


def test_the_values_of_environment_variables_come_with_the_process(monkeypatch):
    monkeypatch.setenv("TOY_SECRET", "value")
    values = {"toy": {}, "platform": {"name": "cpu", "env": {"TOY_SECRET": "***", "TOY_ABSENT": "***"}}}
    settings = settings_of({"type": "toy_stages:ToySettings", "values": values})
    assert settings.platform.env == {"TOY_SECRET": "value", "TOY_ABSENT": "***"} and settings.platform.name == "cpu"
