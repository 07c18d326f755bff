from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import toy
from measured import publish

from launch.execution.run import run
from launch.graph.builder import make_plan
from launch.graph.plan import Branch
from launch.graph.select import select
from launch.recipe.compose import RecipeError
from launch.recipe.run import Selection
from launch.store import Store, StoreError

LRS = "sft.lr=1e-4,3e-4"


def planned(root, *overrides):
    return make_plan("microworld", ["selection.fields=[sft.lr]", f"run.root={root}", *overrides])


def train(plan, store, losses):
    """Publishes every SFT stage with the validation loss of its learning rate (and seed)."""
    for stage in plan.stages.values():
        if stage.kind == "sft":
            lr = stage.settings["sft"]["lr"]
            loss = losses[lr] + 0.001 * stage.settings["seed"]

            def write(folder, loss=loss):
                (folder / "metrics.json").write_text(json.dumps({"val_loss": loss}))
                (folder / "curve.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")

            publish(store, stage, write)


def kinds(plan):
    found = [stage.kind for stage in plan.stages.values()]
    return {kind: found.count(kind) for kind in set(found)}


def test_candidates_end_at_sft_until_all_are_trained_and_then_the_best_goes_on(tmp_path):
    plan = planned(tmp_path, "objective=sft,dft", LRS, "seed=1,2")
    store = Store(tmp_path)
    before = select(plan, store)
    assert [choice.group for choice in before.choices] == ["objective=sft", "objective=dft"]
    assert len(before.undecided) == 2 and len(before.ended) == 8
    assert kinds(before.plan) == {"prepare": 7, "pretrain": 1, "sft": 8, "generate": 5, "measure": 5}
    train(plan, store, {1e-4: 1.0, 3e-4: 0.5})
    after = select(plan, store)
    assert not after.undecided and [choice.chosen for choice in after.choices] == [("sft.lr=0.0003",)] * 2
    assert kinds(after.plan) == {
        "prepare": 7, "pretrain": 1, "sft": 8, "rl": 4, "generate": 45, "measure": 45, "analyse": 2,
    }  # fmt: skip
    for branch in after.plan.branches:
        assert ("rl@final" in branch.stages) == (branch.recipe.sft.lr == 3e-4)
    for stage in after.plan.stages.values():
        users = [branch.name for branch in after.plan.branches if stage.fingerprint in branch.stages.values()]
        assert list(stage.branches) == users


def test_seeds_are_averaged_the_goal_can_be_the_largest_and_divergence_loses(tmp_path):
    plan = planned(tmp_path, LRS, "seed=1,2", "selection.goal=max")
    store = Store(tmp_path)
    train(plan, store, {1e-4: 1.0, 3e-4: 0.5})
    (choice,) = select(plan, store).choices
    assert choice.chosen == ("sft.lr=0.0001",)
    assert [candidate.value for candidate in choice.candidates] == pytest.approx([1.0015, 0.5015])
    other = planned(tmp_path / "other", LRS)
    train(other, Store(tmp_path / "other"), {1e-4: 1.0, 3e-4: math.nan})
    assert select(other, Store(tmp_path / "other")).choices[0].chosen == ("sft.lr=0.0001",)


def test_what_cannot_be_selected_is_refused(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(RecipeError, match=r"sft\.lr is not swept; give several values"):
        select(planned(tmp_path), store)
    with pytest.raises(RecipeError, match=r"rl\.lr is not chosen on validation data; allowed: objective"):
        select(make_plan("microworld", ["selection.fields=[rl.lr]", "rl.lr=1e-5,1e-6"]), store)
    plan = planned(tmp_path, LRS, "selection.metric=accuracy")
    train(plan, store, {1e-4: 1.0, 3e-4: 0.5})
    with pytest.raises(StoreError, match=r"selection\.metric=accuracy: .*allowed: val_loss"):
        select(plan, store)


def ready(plan, store, values):
    """Publishes the readiness of every candidate: pass@4 by its objective's name."""
    for stage in plan.stages.values():
        if stage.kind == "readiness" and stage.label != "base":
            figure = {"value": values[stage.label], "low": 0.0, "high": 1.0, "n": 9}
            text = json.dumps({"figures": {"pass@4": figure, "learnable": figure}})
            publish(store, stage, lambda folder, text=text: (folder / "metrics.json").write_text(text))


def test_the_best_objectives_by_a_figure_of_readiness_go_on(tmp_path):
    overrides = ["objective=sft,dft,lp_sft", "selection.fields=[objective]", "readiness.enabled=true"]
    overrides += [
        "selection.metric=readiness/pass@4",
        "selection.keep=2",
        f"run.root={tmp_path}",
        "rl.from=[base,final]",
    ]
    plan = make_plan("microworld", overrides)
    store = Store(tmp_path)
    before = select(plan, store)
    assert len(before.undecided) == 1 and len(before.ended) == 3
    found = kinds(before.plan)
    # the base's evaluation and RL from it do not wait; of a candidate there is only what its figures are computed from
    assert (found["sft"], found["rollouts"], found["readiness"], found["rl"]) == (3, 4, 4, 1)
    assert found["generate"] == 5 + 5 + 3 * 2
    ready(before.plan, store, {"sft": 0.2, "dft": 0.4, "lp_sft": 0.3})
    after = select(plan, store)
    (choice,) = after.choices
    assert choice.chosen == ("objective=dft", "objective=lp_sft") and after.ended == {"sft"}
    assert kinds(after.plan)["rl"] == 3 and kinds(after.plan)["generate"] == 10 + 2 + 2 * (5 + 5)
    (sft,) = [one for one in choice.candidates if one.setting == "objective=sft"]
    spent = [plan.stages[mark].kind for mark in sft.spent]
    assert sorted(spent) == ["generate", "generate", "measure", "measure", "readiness", "rollouts", "sft"]
    assert [stage.kind for stage in sft.stages] == ["readiness"]
    others = [text for text in overrides if not text.startswith("selection.keep")]
    by_min = make_plan("microworld", [*others, "selection.goal=min"])
    assert select(by_min, store).choices[0].chosen == ("objective=sft",)


def test_readiness_that_is_not_there_is_refused(tmp_path):
    given = [LRS, "selection.fields=[sft.lr]", f"run.root={tmp_path}"]
    with pytest.raises(
        RecipeError, match=r"readiness/learnable: no readiness is measured; set readiness\.enabled=true"
    ):
        make_plan("microworld", [*given, "selection.metric=readiness/learnable"])
    on = [*given, "readiness.enabled=true"]
    with pytest.raises(RecipeError, match=r"selection\.metric=readiness/luck: no predictor .*allowed: coverage_gained"):
        make_plan("microworld", [*on, "selection.metric=readiness/luck"])
    plan = make_plan("microworld", [*on, "selection.metric=readiness/pass@512"])
    store = Store(tmp_path)
    ready(plan, store, {"sft": 0.5})
    with pytest.raises(
        StoreError, match=r"readiness/pass@512: .* has none; allowed: readiness/learnable, readiness/pass@4"
    ):
        select(plan, store)


def test_selection_changes_no_fingerprint(tmp_path):
    plain = make_plan("microworld", [LRS, f"run.root={tmp_path}"])
    assert planned(tmp_path, LRS).stages.keys() == plain.stages.keys()


@pytest.mark.e2e
def test_a_run_trains_the_candidates_and_then_only_what_the_best_needs(tmp_path, ray_session, capsys):
    branches, stages = [], []
    plan = toy.plan(tmp_path)
    selection = Selection(fields=["sft.lr"])
    recipe = plan.branches[0].recipe.model_copy(update={"selection": selection})
    for lr, loss in ((1, 0.7), (2, 0.4), (3, 0.9)):
        sft = toy.stage("validated", f"lr{lr}", seed=lr, val_loss=loss)
        rl = toy.steps(f"lr{lr}", "rl", inputs={"model": (sft, "checkpoint:final")})
        roles = {"sft": sft.fingerprint, "rl@final": rl.fingerprint}
        branches.append(Branch(f"lr={lr}", (f"sft.lr={lr}",), recipe, roles))
        stages += [sft, rl]
    plan = replace(toy.plan(tmp_path, *stages), branches=branches)
    assert run(plan) == 0
    made = {stage.label for stage in stages if stage.kind == "rl" and Store(tmp_path).has(stage)}
    assert made == {"lr2"}
    assert len(Store(tmp_path).costs()) == 4
    capsys.readouterr()
    assert run(plan) == 0
    assert "4 cached" in capsys.readouterr().out
