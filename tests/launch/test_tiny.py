"""`--scale tiny`: what becomes of each recipe before anything runs."""

from __future__ import annotations

import json

import pytest

from launch.recipe import tiny
from launch.recipe.compose import RecipeError, branches
from launch.recipe.library import paper_recipes


@pytest.fixture(autouse=True)
def no_models_are_built(monkeypatch):
    monkeypatch.setattr(tiny, "_built", lambda family, seed, folder: f"{folder}/{family}-{seed}")


@pytest.mark.parametrize("name", paper_recipes())
def test_the_first_row_of_every_recipe(name, tmp_path):
    branch = next(iter(branches(name, ["scale=tiny", f"run.root={tmp_path}"])))
    recipe = branch.recipe
    assert recipe.platform.name == "cpu" and recipe.model.path.startswith(f"{tmp_path}/.tiny/{recipe.model.family}-0")
    assert recipe.sft.steps == recipe.rl.steps == 2 and recipe.model.dtype == "float32"
    assert all(entry["path"].endswith(f"/fixtures/{entry['source']}.jsonl") for entry in recipe.data.sft)
    if recipe.eval.enabled:
        assert {one.source for one in recipe.eval.benchmarks} == {"files"}
        assert all(one.num_samples == (2 if one.temperature else 1) for one in recipe.eval.benchmarks)
        assert {one.name for one in recipe.eval.tasks} <= set(tiny.TASKS)
    teacher = recipe.model.teacher.path
    assert teacher is None or teacher.endswith(f"{recipe.model.family}-1")


def test_an_override_is_kept_where_tiny_does_not_settle_it(tmp_path):
    given = ["scale=tiny", f"run.root={tmp_path}", "seed=7", "objective=gem", "model=llama3_1_8b"]
    (branch,) = branches("lp_sft/t2_magicoder", given)
    assert (branch.recipe.seed, branch.recipe.objective["name"]) == (7, "gem")
    assert branch.recipe.model.chat_template == "llama3"


def test_fixture_problems_hold_a_problem_for_each_grader():
    for file in tiny.PROBLEMS.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert rows and all(row["grader"] == file.stem for row in rows)


def test_what_tiny_cannot_do_is_said(tmp_path):
    with pytest.raises(RecipeError, match=r"scale=tiny: run\.root=s3://bucket/x: give a local directory"):
        list(branches("talr/d3_tau", ["scale=tiny", "run.root=s3://bucket/x"]))
    with pytest.raises(RecipeError, match=r"scale=tiny: model\.family is not set; allowed: qwen2"):
        list(branches("talr/d3_tau", ["scale=tiny", f"run.root={tmp_path}", "model.family=null"]))
    with pytest.raises(RecipeError, match=r"scale=small: "):
        list(branches("talr/d3_tau", ["scale=small"]))
