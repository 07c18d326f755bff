"""Deleting by rule: what stays, what is named, and what has to be made again."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import toy

from common.errors import ConfigError
from launch.commands.line import call
from launch.graph.model import BranchModel
from launch.graph.plan import Branch
from launch.recipe.run import Selection
from launch.removal import Rule, remove
from launch.store import Store
from launch.store.prune import wanted_again

STEPS = (2, 4)


def publish(store, stage, started):
    store.acquire(stage, "run")
    attempt = store.begin(stage)
    folder = store.temporary(stage, attempt)
    loss = {"sft": 0.5, "dft": 0.7, "talr": 0.9}
    (folder / "metrics.json").write_text(json.dumps({"val_loss": loss.get(stage.label)}))
    if stage.kind in ("sft", "rl"):
        for step in STEPS:
            (folder / "checkpoints" / f"step_{step}").mkdir(parents=True)
            (folder / "checkpoints" / f"step_{step}" / "model.safetensors").write_text("w" * 1000)
        (folder / "checkpoints.json").write_text(json.dumps({"final": 4, "best": 2, "steps": STEPS}))
    store.publish(stage, attempt, "run", started=started, seconds=1.0, peak_memory_bytes=1)
    store.release(stage, "run")


@pytest.fixture
def world(tmp_path):
    """Three branches over shared data, made one after another: SFT with two checkpoints, their scores, RL of `sft`."""
    data = toy.steps("data", "prepare")
    recipe = toy.plan(tmp_path).branches[0].recipe
    recipe = recipe.model_copy(update={"selection": Selection(fields=["objective"])})
    branches, stages = [], [replace(data, branches=("sft", "dft", "talr"))]
    for name in ("sft", "dft", "talr"):
        sft = toy.steps(name, inputs={"data": data})
        early = toy.steps(f"{name}-2.target", "measure", inputs={"model": (sft, "checkpoint:2")})
        last = toy.steps(f"{name}.target", "measure", inputs={"model": (sft, "checkpoint:final")})
        rl = toy.steps(name, "rl", inputs={"model": (sft, "checkpoint:final")})
        roles = {"prepare:sft": data, "sft": sft, "measure:sft@2": early, "measure:sft": last, "rl@final": rl}
        models = (
            BranchModel("base", "base"),
            BranchModel("sft@2", "sft", None, "sft", {"target": early.fingerprint}, 2),
            BranchModel("sft", "sft", None, "sft", {"target": last.fingerprint}),
            BranchModel("rl@final", "rl", "final", "rl@final"),
        )
        marks = {role: stage.fingerprint for role, stage in roles.items()}
        branches.append(Branch(name, (f"objective={name}",), recipe, marks, models))
        stages += [replace(stage, branches=(name,)) for stage in (sft, early, last, rl)]
    plan = replace(toy.plan(tmp_path, *stages), branches=branches)
    store = Store(tmp_path)
    for number, stage in enumerate(plan.stages.values()):
        if stage.kind != "rl" or stage.label == "sft":
            publish(store, stage, float(number))
    return plan, store


def weights(store):
    return {
        (path.parents[2].name.partition("-")[0], int(path.parent.name.removeprefix("step_")))
        for path in store.root.glob("sft/*/checkpoints/*/model.safetensors")
    }


def test_only_weights_of_the_last_models_stay_and_none_of_the_losers(world, capsys):
    plan, store = world
    assert remove(plan, Rule(keep_reported=True), delete=False) == 0
    printed = capsys.readouterr().out
    assert "4 weights of artifacts, 7 kB; add --delete" in printed, printed
    assert len(weights(store)) == 6
    remove(plan, Rule(keep_reported=True), delete=True)
    assert weights(store) == {("sft", 4)}
    assert all(store.has(one) for one in plan.stages.values() if one.kind != "rl" or one.label == "sft")
    assert len(list(store.root.glob("rl/*/checkpoints/*/model.safetensors"))) == 0, "RL was not measured"
    remove(plan, Rule(keep_reported=True), delete=True)
    assert "0 weights of artifacts" in capsys.readouterr().out.splitlines()[-1]


def test_what_a_missing_stage_reads_stays(world):
    plan, store = world
    recipe = plan.branches[0].recipe.model_copy(update={"selection": Selection()})
    free = replace(plan, branches=[replace(branch, recipe=recipe) for branch in plan.branches])
    (missing,) = (one for one in plan.stages.values() if one.kind == "measure" and one.label == "dft-2.target")
    from launch.store.prune import take_away

    take_away(store, missing)
    remove(free, Rule(keep_reported=True), delete=True)
    assert weights(store) == {("sft", 4), ("dft", 2), ("dft", 4), ("talr", 4)}


def test_candidates_of_an_undecided_selection_are_no_losers(world):
    plan, store = world
    (untrained,) = (one for one in plan.stages.values() if (one.kind, one.label) == ("sft", "talr"))
    from launch.store.prune import take_away

    take_away(store, untrained)
    remove(plan, Rule(keep_reported=True), delete=True)
    assert weights(store) == {("sft", 4), ("dft", 4)}


def test_a_checkpoint_is_wanted_again_only_by_what_reads_it(world):
    plan, store = world
    remove(plan, Rule(keep_reported=True), delete=True)
    (sft,) = (one for one in plan.stages.values() if (one.kind, one.label) == ("sft", "sft"))
    for select, wanted in (("checkpoint:final", set()), ("checkpoint:2", {sft.fingerprint})):
        more = toy.steps("more", "rl", inputs={"model": (sft, select)})
        larger = {sft.fingerprint: sft, more.fingerprint: more}
        assert wanted_again(larger, store) == wanted


def test_the_branches_made_last_stay(world, capsys):
    plan, store = world
    remove(plan, Rule(keep_last=2), delete=True)
    left = {one.label for one in plan.stages.values() if store.has(one)}
    assert left == {"data", "dft", "dft-2.target", "dft.target", "talr", "talr-2.target", "talr.target"}
    capsys.readouterr()
    remove(plan, Rule(keep_last=1, checkpoints=True), delete=True)
    assert weights(store) == {("talr", 2), ("talr", 4)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep-last", "0"], "--keep-last 0: allowed: 1 or more"),
        (["--keep-last", "1", "--branch", "dft"], "leave --branch out"),
        (["--keep-last", "1", "--keep-reported"], "two rules"),
    ],
)
def test_rules_that_contradict_each_other_are_refused_in_one_line(options, message, tmp_path, capsys):
    assert call(["rm", "microworld", f"run.root={tmp_path}", *options]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1
    with pytest.raises(ConfigError, match="allowed: 1 or more"):
        Rule(keep_last=-1)
