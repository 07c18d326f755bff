import dataclasses
from pathlib import Path

import pytest
import yaml

import sft_objectives

RECIPES = {path.stem: path for path in sorted(Path("recipes/objective").glob("*.yaml"))}


def test_every_objective_has_a_recipe():
    assert {*sft_objectives.names(), "distill"} <= set(RECIPES)


@pytest.mark.parametrize("stem", RECIPES)
def test_a_recipe_lists_every_setting(stem):
    settings = yaml.safe_load(RECIPES[stem].read_text())
    name = settings.pop("name")
    objective = sft_objectives.load(name, **settings)
    assert dataclasses.asdict(objective) == settings
    if "_repo" in stem:
        assert stem.startswith(f"{name}_repo") and objective != sft_objectives.load(name)
    else:
        assert stem == name and objective == sft_objectives.load(name), (
            "a recipe's values are the defaults of the class"
        )
