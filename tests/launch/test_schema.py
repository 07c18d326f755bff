import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from launch.recipe.base_yaml import base_yaml
from launch.recipe.compose import RECIPES
from launch.recipe.model import Model, Pretrain
from launch.recipe.platform import Platform
from launch.recipe.recipe import Recipe
from launch.recipe.run import Run
from launch.recipe.section import Section, identity, later, setting
from launch.stages.cache import Cache
from launch.stages.generate import Eval
from launch.stages.pretrain import VLLM_CPU_HEAD_WIDTHS
from launch.stages.rl import Reward, Rl
from launch.stages.sft import Sft


def test_base_yaml_is_printed_from_the_schema():
    message = "run: python -m launch.recipe.base_yaml > recipes/base.yaml"
    assert (RECIPES / "base.yaml").read_text() == base_yaml(), message


def test_every_field_is_described():
    def walk(section):
        for name, info in section.model_fields.items():
            assert info.description, f"{section.__name__}.{name}"
            if isinstance(info.default, BaseModel):
                walk(type(info.default))

    walk(Recipe)


def test_runtime_fields_bear_no_identity():
    one = Recipe(model=Model(path="m"), run=Run(root="a"), sft=Sft(micro_batch_size=1, processes=2))
    other = Recipe(model=Model(path="m"))
    assert identity(one) == identity(other)
    assert identity(Recipe(model=Model(path="m"), sft=Sft(lr=1e-3))) != identity(other)


def test_a_later_field_at_its_default_leaves_the_identity_as_it_was():
    class Before(Section):
        steps: int = setting(3, "there from the start")

    class After(Before):
        optimizer: str = later("adamw", "came later")

    assert identity(After()) == identity(Before()) == {"steps": 3}
    assert identity(After(optimizer="muon")) == {"steps": 3, "optimizer": "muon"}


def test_a_recipe_has_one_base_model():
    with pytest.raises(ValidationError, match=r"exactly one of model\.path and model\.pretrain"):
        Recipe()


def cached(platform: str = "gpu", **settings) -> Recipe:
    return Recipe(model=Model(path="m"), cache=Cache.model_validate(settings), platform=Platform(name=platform))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"processes": 0}, r"processes\n.*greater than 0"),
        ({"processes": 2, "producer": "vllm"}, r"cache\.processes=2: .*set cache\.tensor_parallel for vllm"),
        ({"processes": 2, "dtype": "bfloat16", "platform": "cpu"}, r"cache\.processes=2: .*set cache\.dtype=float32"),
    ],
)
def test_a_cache_that_cannot_be_sharded_is_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        cached(**settings)


def test_sharding_a_cache_bears_no_identity():
    for settings in ({}, {"dtype": "bfloat16"}):
        assert identity(cached(processes=4, **settings)) == identity(cached(**settings))
    cached(producer="vllm", tensor_parallel=4)


FLASH = {"path": "m", "attention": "flash_attention_2", "dtype": "bfloat16"}
VARLEN = {**FLASH, "attention": "varlen"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": {"pretrain": {"hidden": 192, "heads": 5}}}, "heads=5 does not divide hidden=192"),
        ({"sft": {"batch_size": 9, "processes": 2}}, r"sft\.batch_size=9 is not a multiple of the 2"),
        (
            {"sft": {"batch_size": 8, "dynamic_batch": False, "micro_batch_size": 3}},
            r"sft\.micro_batch_size=3 does not divide the 8",
        ),
        (
            {"sft": {"tokens_per_micro_batch": 95}, "data": {"max_length": 96}},
            r"sft\.tokens_per_micro_batch=95 holds no chat of data\.max_length=96",
        ),
        ({"sft": {"processes": 4, "sequence_parallel": 3}}, r"sft\.processes=4 is not a multiple"),
        ({"sft": {"processes": 2, "sequence_parallel": 2, "packed": False}}, r"needs sft\.packed=true and model\.att"),
        (
            {"sft": {"router_aux_loss": 0.1, "processes": 2, "sequence_parallel": 2}, "model": FLASH},
            r"sft\.router_aux_loss=0\.1: .*set sft\.sequence_parallel=1",
        ),
        ({"sft": {"verl": {"engine": {"strategy": "fsdp"}}}}, r"engine\.strategy='fsdp' is not supported.*fsdp2"),
        (
            {"model": {"path": "m", "dtype": "bfloat16"}, "platform": {"name": "cpu"}},
            r"model\.dtype=bfloat16: .*float32",
        ),
        (
            {"model": {**VARLEN, "dtype": "float32"}, "platform": {"name": "cpu"}},
            r"model\.attention=varlen: platform cpu allows sdpa and eager; set sdpa",
        ),
        ({"model": {**VARLEN, "dtype": "float32"}}, r"model\.attention=varlen: .*set model\.dtype=bfloat16, or"),
        ({"model": {**FLASH, "dtype": "float32"}}, r"model\.attention=flash_attention_2: .*no model\.dtype=float32"),
        (
            {"model": VARLEN, "sft": {"processes": 2, "sequence_parallel": 2}},
            r"sft\.sequence_parallel=2: .*model\.attention=flash_attention_2",
        ),
        (
            {
                "model": VARLEN,
                "rl": {
                    "verl": {"actor_rollout_ref": {"actor": {"fsdp_config": {"ulysses_sequence_parallel_size": 2}}}}
                },
            },
            r"rl\.verl\.actor_rollout_ref\.actor\.fsdp_config\.ulysses_sequence_parallel_size=2: .*flash_attention_2",
        ),
        ({"rl": {"prompts": 8, "mini_batch": 3}}, r"rl\.mini_batch=3 does not divide rl\.prompts=8"),
        ({"rl": {"prompts": 8, "mini_batch": 16}}, r"rl\.mini_batch=16 does not divide rl\.prompts=8"),
        ({"rl": {"processes": 3}, "platform": {"gpus_per_node": 3}}, r"rl\.processes=3 does not divide the 1024"),
        ({"rl": {"processes": 2, "tensor_parallel": 4}}, r"rl\.tensor_parallel=4 does not divide rl\.processes=2"),
        (
            {"rl": {"processes": 2, "tensor_parallel": 2}, "platform": {"name": "cpu"}},
            r"rl\.tensor_parallel=2: set 1 on platform cpu",
        ),
        (
            {"rl": {"full_determinism": True}, "platform": {"name": "cpu"}},
            r"rl\.full_determinism=true: set false on platform cpu",
        ),
        ({"rl": {"processes": 4}, "platform": {"gpus_per_node": 3}}, r"rl\.processes=4 does not fill whole nodes"),
        ({"rl": {"overlong": {"enabled": True, "buffer": 0}}}, r"rl\.overlong\.buffer=0: allowed: 1 to .*=2048"),
        ({"rl": {"reward": {"name": "maths"}}}, "allowed: boxed, .*, math, .* or a dotted path"),
        ({"rl": {"filter": {"above": 0.5, "below": 0.5}}}, r"no pass rate is above 0\.5 and below 0\.5"),
        (
            {"eval": {"benchmarks": [{"name": "target", "max_tokens": 64}], "max_length": 64}},
            r"max_tokens=64 of 'target' leaves no room .* eval\.max_length=64",
        ),
        ({"sft": {"publish_steps": [0, 7], "steps": 6}}, r"sft\.publish_steps=\[0, 7\]: allowed: 1 to sft\.steps=6"),
        ({"rl": {"publish_steps": [5, 500], "steps": 100}}, r"rl\.publish_steps=\[500\]: allowed: 1 to rl\.steps=100"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_when_planned(given, message):
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate({"model": {"path": "m"}, **given})


def test_what_rl_refuses_does_not_matter_without_rl():
    Recipe.model_validate({"model": {"path": "m"}, "rl": {"enabled": False, "prompts": 8, "mini_batch": 3}})


def test_planning_imports_nothing_heavy():
    code = (
        "import sys, launch.__main__, launch.graph.builder, launch.graph.show, launch.status, launch.store\n"
        "heavy = {'torch', 'verl', 'vllm', 'ray', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    root = RECIPES.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_model_that_vllm_cannot_run_on_a_cpu_is_refused_when_planned():
    package = find_spec("vllm")  # importing it takes ten seconds
    assert package is not None and package.origin is not None
    source = (Path(package.origin).parent / "v1" / "attention" / "backends" / "cpu_attn.py").read_text()
    assert f"return {list(VLLM_CPU_HEAD_WIDTHS)}\n" in source
    model = Model(pretrain=Pretrain(hidden=48, heads=4))
    with pytest.raises(ValidationError, match=r"model\.pretrain\.heads=4: 12 of model\.pretrain\.hidden=48 each"):
        Recipe(model=model, platform=Platform(name="cpu"))
    Recipe(model=model, platform=Platform(name="cpu"), rl=Rl(enabled=False), eval=Eval(enabled=False))


def test_the_rewards_by_name_are_those_of_the_rl_stage():
    from rl_stage import rewards

    for name in rewards.names():
        Rl(reward=Reward(name=name))
