import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import ValidationError

from launch import schema
from launch.compose import RECIPES
from launch.schema import Model, Recipe, identity


def test_base_yaml_is_printed_from_the_schema():
    assert (RECIPES / "base.yaml").read_text() == schema.base_yaml(), "run: python -m launch.schema > recipes/base.yaml"


def test_every_field_is_described():
    def walk(section):
        for name, info in section.model_fields.items():
            assert info.description, f"{section.__name__}.{name}"
            if isinstance(info.default, schema.Section):
                walk(type(info.default))

    walk(Recipe)


def test_runtime_fields_bear_no_identity():
    one = Recipe(model=Model(path="m"), run=schema.Run(root="a"), sft=schema.Sft(micro_batch_size=1, processes=2))
    other = Recipe(model=Model(path="m"))
    assert identity(one) == identity(other)
    assert identity(Recipe(model=Model(path="m"), sft=schema.Sft(lr=1e-3))) != identity(other)


def test_a_recipe_has_one_base_model():
    with pytest.raises(ValidationError, match=r"exactly one of model\.path and model\.pretrain"):
        Recipe()


def cached(platform: str = "gpu", **settings) -> Recipe:
    return Recipe(
        model=Model(path="m"), cache=schema.Cache.model_validate(settings), platform=schema.Platform(name=platform)
    )


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


def test_planning_imports_nothing_heavy():
    code = (
        "import sys, launch.__main__, launch.plan, launch.compose, launch.show, launch.status, launch.store\n"
        "heavy = {'torch', 'verl', 'vllm', 'ray', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    root = Path(schema.__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_model_that_vllm_cannot_run_on_a_cpu_is_refused_when_planned():
    package = find_spec("vllm")  # importing it takes ten seconds
    assert package is not None and package.origin is not None
    source = (Path(package.origin).parent / "v1" / "attention" / "backends" / "cpu_attn.py").read_text()
    assert f"return {list(schema.VLLM_CPU_HEAD_WIDTHS)}\n" in source
    model = Model(pretrain=schema.Pretrain(hidden=48, heads=4))
    with pytest.raises(ValidationError, match=r"model\.pretrain\.heads=4: 12 of model\.pretrain\.hidden=48 each"):
        Recipe(model=model, platform=schema.Platform(name="cpu"))
    Recipe(
        model=model, platform=schema.Platform(name="cpu"), rl=schema.Rl(enabled=False), eval=schema.Eval(enabled=False)
    )
