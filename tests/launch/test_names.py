"""What branches, stages and rows of a report are called: no two alike."""

from __future__ import annotations

import pytest

from launch.graph.builder import make_plan
from launch.recipe.compose import RecipeError
from launch.report.lines import lines

SMALL = ("eval.enabled=false", "rl.enabled=false")


def names(*overrides):
    return [branch.name for branch in make_plan("microworld", [*SMALL, *overrides]).branches]


def rows(*overrides):
    plan = make_plan("microworld", [*SMALL, *overrides])
    return [line.name for line in lines(plan) if not line.is_base]


def test_a_field_goes_by_the_shortest_name_that_no_other_has():
    assert names("objective=sft,dft", "sft.lr=1e-4,2e-4")[:2] == ["sft lr=0.0001", "sft lr=0.0002"]
    assert names("sft.lr=1e-4,2e-4", "rl.lr=1e-6")[:1] == ["lr=0.0001"]
    assert names("sweep=[{sft.lr: 1e-4},{rl.lr: 1e-4}]") == ["sft.lr=0.0001", "rl.lr=0.0001"]
    assert names("sft.lr=1e-4,2e-4", "rl.lr=1e-4,2e-4")[1] == "sft.lr=0.0001 rl.lr=0.0002"
    assert names("model.eos=null,'null'") == ["eos=null", "eos='null'"]
    with pytest.raises(RecipeError, match="two branches are called 'seed=1'; remove the repeated value"):
        names("seed=1,1")


def test_only_the_training_seed_is_averaged_over():
    assert rows("data.seed=0,1") == ["data.seed=0", "data.seed=1"]
    assert rows("seed=0,1") == ["sft"]
    assert rows("seed=0,1", "data.seed=0,1") == ["data.seed=0", "data.seed=1"]
    assert rows("objective=sft,dft", "seed=0,1", "data.seed=2") == ["sft", "dft"]
    assert rows("sweep=[{sft.lr: 1e-4},{rl.lr: 1e-4}]") == ["sft.lr=0.0001", "rl.lr=0.0001"]


def test_a_text_that_holds_the_word_seed_is_a_row_of_its_own():
    found = rows("data.system_prompt='say seed=1','say seed=2'")
    assert found == ["system_prompt=say seed=1", "system_prompt=say seed=2"]


def test_stages_that_share_kind_and_label_have_titles_that_tell_them_apart():
    plan = make_plan("microworld", ["objective=sft,dft", "sft.lr=1e-4,2e-4", "seed=1,2"])
    titles = [stage.name for stage in plan.stages.values()]
    assert len(set(titles)) == len(titles)
    assert {"sft sft lr=0.0001 seed=2", "rl dft lr=0.0002 seed=1", "prepare sft", "pretrain base"} <= set(titles)
    alone = make_plan("microworld", ["objective=sft,dft"])
    assert {stage.name for stage in alone.stages.values() if stage.kind == "sft"} == {"sft sft", "sft dft"}
    by_data = make_plan("microworld", ["data.seed=0,1", *SMALL])
    assert {"prepare sft data.seed=0", "sft sft data.seed=1"} <= {stage.name for stage in by_data.stages.values()}
    addresses = {stage.address for stage in plan.stages.values()}
    fewer = make_plan("microworld", ["objective=dft", "sft.lr=1e-4", "seed=1"])
    apart = {stage.address for stage in fewer.stages.values() if stage.kind != "analyse"}
    assert apart <= addresses, "what a stage is called in one plan does not move its artifact"
