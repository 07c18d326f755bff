"""Where the branches of a plan are, and deleting them or their weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import toy

from common.errors import ConfigError
from launch.branches import describe, show
from launch.commands.line import call
from launch.graph.estimate import estimate_plan
from launch.graph.model import BranchModel
from launch.graph.plan import Branch
from launch.removal import Rule, remove
from launch.store import Store, StoreError
from launch.store.prune import wanted_again


def write_model(folder):
    (folder / "checkpoints" / "step_2").mkdir(parents=True)
    (folder / "checkpoints" / "step_2" / "model.safetensors").write_text("weights" * 100)
    (folder / "checkpoints.json").write_text(json.dumps({"final": 2, "best": 2, "steps": [2]}))
    (folder / "metrics.json").write_text("{}")


def publish(store, stage, write):
    store.acquire(stage, "run")
    attempt = store.begin(stage)
    write(store.temporary(stage, attempt))
    store.publish(stage, attempt, "run", started=0.0, seconds=3600.0, peak_memory_bytes=1)
    store.finish(stage, attempt, {"outcome": "ok", "message": "", "seconds": 3600.0})
    store.release(stage, "run")


@pytest.fixture
def world(tmp_path):
    """Two branches that share what `prepare` made, each with a model and its scores; all is published."""
    data = toy.steps("data", "prepare")
    branches, stages = [], [data]
    recipe = toy.plan(tmp_path).branches[0].recipe
    for name in ("sft", "dft"):
        sft = toy.steps(name, inputs={"data": data})
        scores = toy.steps(f"{name}.target", "measure", inputs={"model": (sft, "checkpoint:final")})
        roles = {"prepare:sft": data.fingerprint, "sft": sft.fingerprint, "measure:sft/target": scores.fingerprint}
        models = (BranchModel("sft", "sft", None, "sft", {"target": scores.fingerprint}),)
        branches.append(Branch(name, (f"objective={name}",), recipe, roles, models))
        stages += [replace(sft, branches=(name,)), replace(scores, branches=(name,))]
    stages[0] = replace(data, branches=("sft", "dft"))
    plan = replace(toy.plan(tmp_path, *stages), branches=branches)
    store = Store(tmp_path)
    for stage in plan.stages.values():
        plain = lambda folder: (folder / "metrics.json").write_text("{}")  # noqa: E731
        publish(store, stage, write_model if stage.kind == "sft" else plain)
    return plan, store


def by_label(plan, kind, label):
    return next(stage for stage in plan.stages.values() if (stage.kind, stage.label) == (kind, label))


def test_a_branch_says_where_its_models_are_and_what_they_cost(world, capsys):
    plan, store = world
    found = describe(plan, store, plan.branches[1])
    (model,) = found["models"]
    sft = by_label(plan, "sft", "dft")
    assert model["directory"] == str(store.directory(sft) / "checkpoints" / "step_2")
    assert model["measured"] == {"target": by_label(plan, "measure", "dft.target").address}
    assert [stage["shared"] for stage in found["stages"]] == [True, False, False]
    assert found["total"]["attempts"] == 3 and found["total"]["seconds"] == 3 * 3600
    assert show(plan, ["dft"], as_json=True) == 0
    assert [one["branch"] for one in json.loads(capsys.readouterr().out)] == ["dft"]
    assert show(plan, [], as_json=False) == 0
    assert "3 of 3 stages made (1 shared with other branches)" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--branch talr: no branch is called so; allowed: sft, dft"):
        show(plan, ["talr"], as_json=False)


def test_nothing_goes_before_it_is_asked_for_and_what_is_shared_stays(world, capsys):
    plan, store = world
    assert remove(plan, Rule(["dft"]), delete=False) == 0
    assert "2 artifacts, " in capsys.readouterr().out and all(map(store.has, plan.stages.values()))
    assert remove(plan, Rule(["dft"], days=1e6), delete=True) == 0
    assert "0 artifacts" in capsys.readouterr().out
    assert remove(plan, Rule(["dft"]), delete=True) == 0
    left = {stage.label for stage in plan.stages.values() if store.has(stage)}
    assert left == {"data", "sft", "sft.target"}


def test_weights_go_and_scores_stay_until_something_reads_the_weights(world):
    plan, store = world
    sft, scores = by_label(plan, "sft", "dft"), by_label(plan, "measure", "dft.target")
    assert remove(plan, Rule(checkpoints=True), delete=True) == 0
    assert all(map(store.has, plan.stages.values())), "the records stay"
    directory = store.directory(sft)
    assert not (directory / "checkpoints" / "step_2" / "model.safetensors").exists()
    assert (directory / "metrics.json").exists() and store.find(sft).bytes < 200
    store.verify(directory, sft.fingerprint)
    with pytest.raises(StoreError, match="holds no files under checkpoints/step_2"):
        store.verify(directory, sft.fingerprint, "checkpoints/step_2")
    assert describe(plan, store, plan.branches[1])["models"][0]["directory"] == "deleted by rm"
    assert wanted_again(plan.stages, store) == set()
    assert remove(plan, Rule(checkpoints=True), delete=True) == 0, "there is no more to prune"
    more = toy.steps("dft", "rl", inputs={"model": (sft, "checkpoint:final")})
    larger = replace(plan, stages={**plan.stages, more.fingerprint: more})
    assert wanted_again(larger.stages, store) == {sft.fingerprint}
    estimates = estimate_plan(larger, store)
    assert estimates[sft.fingerprint].source != "record" and estimates[scores.fingerprint].source == "record"


def test_nothing_is_deleted_under_a_living_run(world):
    plan, store = world
    toy.signed_on(store, "busy")
    with pytest.raises(StoreError, match="a run is alive"):
        remove(plan, Rule(checkpoints=True), delete=True)


def test_a_model_from_elsewhere_is_evaluated_without_training(tmp_path, capsys):
    model = tmp_path / "it's mine"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_text("weights")
    root = f"run.root={tmp_path / 'runs'}"
    assert call(["evaluate", str(model), "microworld", root, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "generate/base.target" in printed and "measure/base.held_out" in printed
    assert not any(f"{kind}/" in printed for kind in ("sft", "rl", "cache", "pretrain")), printed
    assert not list((tmp_path / "runs").glob("*/*")), "nothing is made"
