"""Where the branches of a plan are, and deleting them or their weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import toy

from common.errors import ConfigError
from launch.branches import describe, show
from launch.commands.line import call
from launch.export import export
from launch.graph.estimate import estimate_plan
from launch.graph.model import BranchModel
from launch.graph.plan import Branch
from launch.removal import Rule, remove
from launch.store import Store, StoreError
from launch.store.prune import take_away, wanted_again


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


def test_a_model_is_exported_with_its_card(world, tmp_path):
    plan, store = world
    for stage in plan.stages.values():
        if stage.kind == "measure":
            take_away(store, stage)
    target = tmp_path / "out"
    assert export(plan, "dft", None, target, licence="apache-2.0", push=None) == 0
    assert (target / "model.safetensors").read_text().startswith("weights")
    card = (target / "README.md").read_text()
    assert 'license: "apache-2.0"' in card and "toy, dft: sft" in card
    for kind, label in (("prepare", "data"), ("sft", "dft")):
        assert f"| {kind} {label} | `{by_label(plan, kind, label).fingerprint}` |" in card
    assert by_label(plan, "sft", "sft").fingerprint not in card and "python 3." in card
    with pytest.raises(ConfigError, match="is there already"):
        export(plan, "dft", None, target, licence=None, push=None)
    with pytest.raises(ConfigError, match="there are sft, dft; name one"):
        export(plan, None, None, tmp_path / "other", licence=None, push=None)
    with pytest.raises(ConfigError, match="--model rl: branch dft has none; allowed: sft"):
        export(plan, "dft", "rl", tmp_path / "other", licence=None, push=None)
    assert remove(plan, Rule(checkpoints=True), delete=True) == 0
    with pytest.raises(ConfigError, match="deleted by rm; run the recipe first"):
        export(plan, "dft", None, tmp_path / "other", licence=None, push=None)


def test_a_model_is_pushed_through_the_hubs_own_client(world, tmp_path, monkeypatch):
    plan, store = world
    for name in ("sft.target", "dft.target"):
        take_away(store, by_label(plan, "measure", name))
    calls = []

    class Hub:
        def create_repo(self, name, *, exist_ok):
            calls.append(("create", name, exist_ok))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    export(plan, "sft", "sft", tmp_path / "out", licence=None, push="own/model")
    assert calls == [("create", "own/model", True), ("upload", "own/model", ["README.md", "model.safetensors"])]


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
