"""A model that was trained elsewhere, as a branch beside trained ones."""

from __future__ import annotations

import json

import pytest

from launch.commands.line import call
from launch.graph.builder import make_plan
from launch.graph.select import select
from launch.recipe.compose import RecipeError
from launch.report.lines import lines
from launch.store import Store


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "else@where"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("weights")
    return folder


def of(plan, name, role):
    (branch,) = (branch for branch in plan.branches if branch.name == name)
    return plan.stages[branch.stages[role]]


def test_it_is_a_branch_beside_those_of_the_sweep(folder):
    given = ["objective=sft,lp_sft", "sft.lr=1e-4,3e-4", "seed=1,2", f"adopt.mine={folder}", "rl.from=[base,final]"]
    plan = make_plan("microworld", [*given, "sft.publish_steps=[2]"])
    names = [branch.name for branch in plan.branches]
    assert len(names) == 10 and names[-2:] == ["mine seed=1", "mine seed=2"]
    adopted = of(plan, "mine seed=1", "sft")
    assert (adopted.kind, adopted.label) == ("adopt", "mine") and adopted.identity == {}
    assert adopted.fingerprint == of(plan, "mine seed=2", "sft").fingerprint, "seeds are of RL alone here"
    rl = of(plan, "mine seed=1", "rl@final")
    assert (rl.label, rl.inputs["model"].stage) == ("mine", adopted.fingerprint)
    assert of(plan, "mine seed=1", "rl@base").fingerprint == of(plan, "sft lr=0.0001 seed=1", "rl@base").fingerprint
    (mine, *_) = (branch for branch in plan.branches if branch.name == "mine seed=1")
    assert [model.name for model in mine.models] == ["base", "sft", "rl@base", "rl@final"]
    assert all(model.measures for model in mine.models)
    assert not any(role.startswith("cache") for role in mine.stages)
    plain = make_plan("microworld", ["objective=sft", "sft.lr=1e-4", "seed=1", "sft.publish_steps=[2]"])
    trained = of(plan, "sft lr=0.0001 seed=1", "sft").fingerprint
    assert trained == plain.stages[plain.branches[0].stages["sft"]].fingerprint, "what is trained stays the same"
    rows = [line.name for line in lines(plan)]
    assert rows[:2] == ["base model", "RL from the base"] and rows[-1] == "mine", rows


def test_it_counts_by_its_weights(folder, tmp_path):
    def mark(place, *more):
        plan = make_plan("microworld", [f"sft.adopt={place}", *more])
        return plan.stages[plan.branches[0].stages["sft"]].fingerprint

    first = mark(folder)
    moved = folder.rename(tmp_path / "moved")
    assert mark(moved, "objective=dft", "sft.lr=1", "seed=7") == first != mark(moved, "model.eos=<|im_end|>")
    (moved / "model.safetensors").write_text("others")
    assert mark(moved) != first


def test_selection_compares_it_where_it_is_asked_to(folder, tmp_path):
    given = ["objective=sft,dft", f"adopt.mine={folder}", "readiness.enabled=true", f"run.root={tmp_path}"]
    given += ["selection.metric=readiness/pass@4"]
    plan = make_plan("microworld", [*given, "selection.fields=[objective,adopt]"])
    (choice,) = select(plan, Store(tmp_path)).choices
    assert [one.setting for one in choice.candidates] == ["objective=sft", "objective=dft", "adopt=mine"]
    assert [stage.kind for stage in choice.candidates[-1].stages] == ["readiness"]
    beside = make_plan("microworld", [*given, "selection.fields=[objective]"])
    found = select(beside, Store(tmp_path))
    assert len(found.choices) == 1 and found.ended == {"sft", "dft"}, "it goes on whatever is chosen"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sft.publish_steps=[2]"], r"an adopted model is what SFT ended with; leave out sft\.publish_steps"),
        (["sft.from=sft"], r"leave out sft\.from"),
        (["sft.enabled=false", "rl.enabled=false"], "leave out a branch without SFT"),
        (["rl.from=[3]"], r"an adopted model has no step 3; set rl\.from=final"),
    ],
)
def test_what_does_not_go_with_it_is_refused(overrides, message, folder):
    with pytest.raises(RecipeError, match=message):
        make_plan("microworld", [f"sft.adopt={folder}", *overrides])


def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"sft\.adopt=.*nowhere: no such file or directory"):
        make_plan("microworld", [f"adopt.mine={tmp_path / 'nowhere'}"])


def test_the_command_brings_it_into_the_store(tmp_path, capsys):
    from rl_stage.bench_inputs import write_model

    model = write_model(tmp_path / "model", hidden=32, layers=1, heads=2, initializer_range=0.1, tied=True)
    (model / "optimizer.pt").write_text("moments")
    root = f"run.root={tmp_path / 'runs'}"
    assert call(["adopt", str(model), "microworld", root, "--as", "mine"]) == 0
    printed = capsys.readouterr().out
    (artifact,) = (tmp_path / "runs" / "adopt").glob("mine-*[0-9a-f]")
    assert str(artifact) in printed and f"adopt.mine={model}" in printed and "not copied: optimizer.pt" in printed
    copy = artifact / "checkpoints" / "step_0"
    assert (copy / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert json.loads((artifact / "checkpoints.json").read_text()) == {"best": 0, "final": 0, "steps": [0]}
    record = Store(tmp_path / "runs").record(artifact)
    assert record is not None
    assert record.inputs["model"]["path"] == str(model) and record.settings["source"] == str(model)
    assert call(["adopt", str(copy), "microworld", root, "--as", "mine"]) == 0
    assert f"mine: {artifact} (" in capsys.readouterr().out, "the copy is the same model"
    (model / "model.safetensors").unlink()
    assert call(["adopt", str(model), "microworld", root, "--as", "broken"]) == 2
    message = capsys.readouterr().err
    assert "has neither of model.safetensors" in message and message.count("\n") == 1
    assert len(list((tmp_path / "runs" / "adopt").glob("*/record.json"))) == 1
