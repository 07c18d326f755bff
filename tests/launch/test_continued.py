"""SFT that goes on from a model: of another branch, or of a directory."""

from __future__ import annotations

import json

import pytest

from launch.graph.builder import make_plan
from launch.graph.select import select
from launch.recipe.compose import RecipeError
from launch.store import Store

SHORT = ("microworld", "rl.enabled=false")


def of(plan, name, role):
    (branch,) = (branch for branch in plan.branches if branch.name == name)
    return plan.stages[branch.stages[role]]


def a_model(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("weights")
    return folder


def test_it_goes_on_from_the_branch_without_its_length(tmp_path):
    root = f"run.root={tmp_path}"
    plain = make_plan("microworld", ["objective=sft,lp_sft", root])
    more = make_plan("microworld", ["objective=sft,lp_sft", root, "sft.from=sft", "sft.steps=7"])
    for name in ("sft", "lp_sft"):
        stage = of(more, name, "sft")
        assert stage.inputs["model"].stage == of(plain, "sft", "sft").fingerprint
        assert stage.inputs["model"].select == "checkpoint:final"
        assert "start" not in stage.identity["sft"]
        assert of(more, name, "rl@final").inputs["model"].stage == stage.fingerprint
    base = of(plain, "lp_sft", "pretrain:base").fingerprint
    cache = more.stages[of(more, "lp_sft", "sft").inputs["base_cache"].stage]
    assert cache.inputs["model"].stage == base, "the reference is the base, not what SFT starts from"
    assert cache.fingerprint == of(plain, "lp_sft", "cache:base").fingerprint
    roles = list(more.branches[0].stages)
    assert [role for role in roles if role.startswith("start:")] == ["start:sft"], "what is shared stands once"
    assert [model.name for model in more.branches[0].models] == ["base", "sft", "rl@final"]
    assert len({stage.name for stage in more.stages.values()}) == len(more.stages)


def test_a_live_base_stays_the_base():
    plan = make_plan("microworld", ["objective=asft", "sft.from=asft", "sft.epochs=2"])
    inputs = of(plan, "asft", "sft").inputs
    assert plan.stages[inputs["base"].stage].kind == "pretrain" and plan.stages[inputs["model"].stage].kind == "sft"


def test_rows_of_a_sweep_go_on_from_one_another():
    rows = "sweep=[{objective: dft}, {objective: sft, sft.from: dft}, {objective: dft, sft.from: 'sft from=dft'}]"
    plan = make_plan(SHORT[0], [SHORT[1], rows])
    first, second, third = (plan.stages[branch.stages["sft"]] for branch in plan.branches)
    assert second.inputs["model"].stage == first.fingerprint
    assert third.inputs["model"].stage == second.fingerprint


def test_it_goes_on_from_a_directory_by_its_weights(tmp_path):
    folder = a_model(tmp_path / "elsewhere")
    plans = [make_plan(SHORT[0], [SHORT[1], f"sft.from={folder}"])]
    folder.rename(tmp_path / "moved")
    plans.append(make_plan(SHORT[0], [SHORT[1], f"sft.from={tmp_path / 'moved'}"]))
    (tmp_path / "moved" / "model.safetensors").write_text("others")
    plans.append(make_plan(SHORT[0], [SHORT[1], f"sft.from={tmp_path / 'moved'}"]))
    marks = [of(plan, plan.branches[0].name, "sft").fingerprint for plan in plans]
    assert marks[0] == marks[1] != marks[2]
    assert of(plans[0], "sft", "sft").models["model"] == {"revision": None, "eos": None}


@pytest.mark.parametrize("as_address", [True, False])
def test_an_artifact_stands_for_its_last_checkpoint(tmp_path, as_address):
    artifact = tmp_path / "runs" / "sft" / "dft-0123"
    a_model(artifact / "checkpoints" / "step_4")
    (artifact / "checkpoints.json").write_text(json.dumps({"final": 4, "best": 2, "steps": [2, 4]}))
    given = "sft/dft-0123" if as_address else str(artifact)
    plan = make_plan(SHORT[0], [SHORT[1], f"run.root={tmp_path / 'runs'}", f"sft.from={given}"])
    assert of(plan, "sft", "sft").inputs["model"].path == str(artifact / "checkpoints" / "step_4")


def test_selection_looks_at_what_goes_on_not_at_its_start(tmp_path):
    given = ["sft.lr=1e-4,3e-4", "sft.from='lr=0.0001'", "sft.epochs=2", "selection.fields=[sft.lr]"]
    plan = make_plan("microworld", [*given, f"run.root={tmp_path}"])
    (choice,) = select(plan, Store(tmp_path)).choices
    for candidate, branch in zip(choice.candidates, plan.branches, strict=True):
        assert [stage.fingerprint for stage in candidate.stages] == [branch.stages["sft"]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["objective=sft,dft", "sft.from=talr"],
            r"sft\.from=talr: no branch .* allowed: sft, dft, or the",
        ),
        (["sft.from=./nothing"], r"sft\.from=\./nothing: no such file or directory"),
        (["sft.from=sft", "sft.enabled=false"], r"sft\.from=sft: nothing is fine-tuned here"),
        (["objective=asft", "sft.from=asft", "sft.lora={rank: 4}"], "without its update stands for the base"),
        (["sweep=[{objective: sft, sft.from: 'sft from=sft'}]"], "allowed: "),
    ],
)
def test_what_it_cannot_start_from_is_refused_in_one_line(overrides, message):
    with pytest.raises(RecipeError, match=message) as refused:
        make_plan(SHORT[0], [SHORT[1], *overrides])
    assert "\n" not in str(refused.value)


def test_a_recipe_that_starts_from_itself_is_refused(tmp_path):
    recipe = tmp_path / "own.yaml"
    lines = ["defaults: [base, {objective: sft}, {platform: cpu}, _self_]", "model: {pretrain: {}}"]
    recipe.write_text("\n".join([*lines, "data: {source: microworld}", "sft: {from: sft}"]))
    with pytest.raises(RecipeError, match=r"sft\.from=sft: that branch starts from itself"):
        make_plan(str(recipe), ["rl.enabled=false"])
