"""Successive halving: what is decided from scores, what is planned, and that a killed run decides the same again."""

from __future__ import annotations

import json
import math
from typing import ClassVar

import pytest
from measured import publish

from common.pauses import note_pause
from launch.commands.line import call
from launch.execution import run as running
from launch.graph.builder import make_plan
from launch.graph.rungs import budget, halve
from launch.graph.select import select
from launch.graph.show import plan_json
from launch.recipe.compose import RecipeError
from launch.removal import Rule, remove
from launch.status import collect
from launch.store import Store, StoreError
from launch.store.pauses import has_paused, pause_of

RUNGS = [1, 3, 8]
SETTINGS = (
    "objective=sft,dft,talr,lp_sft",
    "seed=1,2",
    "rl.steps=8",
    "rl.validate_every=1",
    "selection.fields=[objective]",
    "selection.rungs=[1,3,8]",
    "selection.metric=rl/validation_pass_rate",
    "eval.benchmarks=[{name: target, num_samples: 4, temperature: 1.0, top_p: 1.0, max_tokens: 64, greedy: true}]",
    "eval.k=[1,4]",
    "analyses=[]",
)
# Mean over two seeds of the scores at steps 1 and 3; the second seed has 0.02 more.
SCORES = {"sft": (0.3, 0.5), "dft": (0.2, 0.9), "talr": (0.4, 0.4), "lp_sft": (0.1, 0.95)}


def table(scores):
    return lambda one, rung: scores[one].get(rung)


def test_the_better_half_goes_on():
    scores = {"a": {1: 0.1}, "b": {1: 0.4}, "c": {1: 0.3}, "d": {1: 0.2}, "e": {}}
    first = halve("abcde", table(scores), [1, 3, 9], 1)
    assert (first.left, first.pending, first.stopped) == (tuple("abcde"), 1, {})
    assert first.values == {"a": 0.1, "b": 0.4, "c": 0.3, "d": 0.2, "e": None}
    scores["e"] = {1: math.nan}
    second = halve("abcde", table(scores), [1, 3, 9], 1)
    assert (second.left, second.pending, second.stopped) == (("b", "c", "d"), 3, {"a": 1, "e": 1})
    for one, value in (("b", 0.5), ("c", 0.5), ("d", 0.5)):
        scores[one][3] = value
    last = halve("abcde", table(scores), [1, 3, 9], 1)
    assert (last.left, last.pending, last.stopped) == (("b", "c"), None, {"a": 1, "e": 1, "d": 3}), "the first ones tie"


def test_nobody_pauses_where_nobody_would_stop():
    nothing = table({"a": {}, "b": {}, "c": {}})
    assert halve("a", nothing, [1, 3, 9], 1).pending is None
    assert halve("ab", nothing, [1, 3, 9], 2).pending is None
    assert halve("abc", nothing, [1, 3, 9], 2).pending == 1


def test_the_budget_is_between_the_cheap_and_the_dear_candidates_going_on():
    costs = {"a": 9.0, "b": 9.0, "c": 90.0, "d": 90.0}
    open_still = halve("abcd", table({one: {} for one in "abcd"}), [1, 3, 9], 1)
    found = budget(open_still, costs, [1, 3, 9], 1)
    assert found.least == pytest.approx(10 + 10 + 3 + 9)  # c and d stop at 1, one of a and b at 3
    assert found.most == pytest.approx(1 + 1 + 30 + 90)
    assert found.whole == 198.0
    scores = {"a": {1: 1, 3: 1}, "b": {1: 0}, "c": {1: 1, 3: 0}, "d": {1: 0}}
    decided = budget(halve("abcd", table(scores), [1, 3, 9], 1), costs, [1, 3, 9], 1)
    assert decided.least == decided.most == pytest.approx(9 + 1 + 30 + 10)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["selection.rungs=[3,1]"], "give two or more steps that rise"),
        (["selection.rungs=[8]"], "give two or more steps that rise"),
        (["rl.steps=9"], r"the last one is the whole run; set rl\.steps=8"),
        (["rl.validate_every=0"], r"rl\.validate_every=0 does not validate at \[1, 3\]; set rl\.validate_every=1"),
        (["selection.metric=val_loss"], r"set metric=rl/validation_pass_rate"),
        (["rl.pause_at=8"], r"rl\.pause_at=8: allowed: 1 to 7"),
        (["selection.rungs=[]"], r"set rungs=\[\.\.\.\]"),
    ],
)
def test_rungs_that_cannot_work_are_refused(overrides, message):
    keys = {text.partition("=")[0] for text in overrides}
    kept = [text for text in SETTINGS if text.partition("=")[0] not in keys]
    with pytest.raises(RecipeError, match=message) as refused:
        make_plan("microworld", [*kept, *overrides])
    assert "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """The plan, made once; tests give it a store of their own."""
    return make_plan("microworld", [*SETTINGS, f"run.root={tmp_path_factory.mktemp('none')}"])


@pytest.fixture
def plan(template, tmp_path):
    for branch in template.branches:
        branch.recipe.run.__dict__["root"] = str(tmp_path / "runs")
    return template


class Killed(BaseException):
    pass


class FakeDriver:
    """Makes the stages of a plan at once: RL with the scores of SCORES; ends after `lives` stages like a kill."""

    lives = math.inf
    made: ClassVar[list[tuple[str, str, int | None]]] = []

    def __init__(self, plan, store, whole):
        self.plan, self.store = plan, store

    def run(self):
        for stage in self.plan.stages.values():
            if self.store.find(stage) is not None or has_paused(self.store, stage):
                continue
            if FakeDriver.lives <= 0:
                raise Killed
            FakeDriver.lives -= 1
            FakeDriver.made.append((stage.kind, stage.label, pause_of(stage)))
            step = pause_of(stage)
            if step is not None:
                seed = 0.02 * (stage.settings["seed"] == 2)
                score = SCORES[stage.label][RUNGS.index(step)] + seed
                self.store.scratch(stage).mkdir(parents=True, exist_ok=True)
                note_pause(self.store.scratch(stage), step, {"validation_pass_rate": score})
                (self.store.scratch(stage) / "checkpoint").write_text("moments")
                continue

            def write(folder, stage=stage):
                scores = zip(RUNGS, SCORES.get(stage.label, ()), strict=False) if stage.kind == "rl" else ()
                rows = [{"step": step, "validation_pass_rate": score} for step, score in scores]
                (folder / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
                (folder / "metrics.json").write_text("{}")
                (folder / "checkpoints.json").write_text('{"final": 1, "best": 1, "steps": [1]}')

            publish(self.store, stage, write)
        return 0


@pytest.fixture
def driver(monkeypatch):
    FakeDriver.lives, FakeDriver.made = math.inf, []
    monkeypatch.setattr(running, "Driver", FakeDriver)
    monkeypatch.setattr(running, "write_report", lambda plan: 0)
    return FakeDriver


def rl_of(plan):
    return {stage.label: pause_of(stage) for stage in plan.stages.values() if stage.kind == "rl"}


def test_all_start_and_only_the_survivors_come_to_the_end(plan, driver):
    store = Store(plan.root)
    before = select(plan, store)
    assert rl_of(before.plan) == dict.fromkeys(SCORES, 1)
    assert not any(".rl" in stage.label for stage in before.plan.stages.values()), "evaluation waits for the decision"
    assert len(before.undecided) == 1 and len(before.ended) == 8
    shown = plan_json(plan)["selection"][0]
    assert shown["rung"] == 1 and 0 < shown["budget"]["least"] <= shown["budget"]["most"] < shown["budget"]["whole"]
    assert running.run(plan) == 0
    trained = [(label, step) for kind, label, step in driver.made if kind == "rl"]
    assert [one for one in trained if one[1] == 1] == [(name, 1) for name in SCORES for _ in "12"]
    assert {one for one in trained if one[1] == 3} == {("sft", 3), ("talr", 3)}
    assert [one for one in trained if one[1] is None] == [("sft", None)] * 2
    after = select(plan, store)
    (choice,) = after.choices
    assert choice.chosen == ("objective=sft",) and after.ended == {
        f"{name} seed={seed}" for name in ("dft", "talr", "lp_sft") for seed in (1, 2)
    }
    assert {one.setting: one.stopped for one in choice.candidates} == {
        "objective=sft": None, "objective=dft": 1, "objective=talr": 3, "objective=lp_sft": 1,
    }  # fmt: skip
    values = {one.setting: one.value for one in choice.candidates}
    assert values["objective=talr"] == pytest.approx(0.41) and values["objective=dft"] == pytest.approx(0.21)
    evaluated = {
        stage.label for stage in after.plan.stages.values() if ".rl" in stage.label and stage.kind == "measure"
    }
    assert evaluated and all(label.startswith("sft.rl") for label in evaluated)
    assert all(store.find(stage) is not None or has_paused(store, stage) for stage in after.plan.stages.values())
    assert {mark for mark, stage in after.plan.stages.items() if stage.kind == "rl"} <= set(plan.stages), "one identity"


def test_a_run_that_is_killed_anywhere_decides_the_same_again(plan, driver):
    assert running.run(plan) == 0
    undisturbed = sorted(map(str, driver.made))
    count = len(undisturbed)
    for lives in range(4, count, 17):
        for branch in plan.branches:
            branch.recipe.run.__dict__["root"] = str(Store(plan.root).root.parent / f"runs{lives}")
        driver.made, driver.lives = [], lives
        with pytest.raises(Killed):
            running.run(plan)
        driver.lives = math.inf
        assert running.run(plan) == 0
        assert sorted(map(str, driver.made)) == undisturbed
        (choice,) = select(plan, Store(plan.root)).choices
        assert choice.chosen == ("objective=sft",)


def test_paused_losers_are_shown_and_their_checkpoints_can_go(plan, driver, capsys):
    store = Store(plan.root)
    running.run(plan)
    rows = {(row["kind"], row["label"]): row for row in collect(plan)}
    row = rows["rl", "talr"]
    assert (row["state"], row["done"], row["total"]) == ("paused", 3, 8) and "validation_pass_rate" in row["metrics"]
    assert rows["rl", "sft"]["state"] == "done"
    found = plan_json(plan)
    states = {(stage["stage"], stage["label"]): stage["state"] for stage in found["stages"]}
    assert states["rl", "talr"] == "paused" and found["total"]["missing"] == 0
    capsys.readouterr()
    assert remove(plan, Rule(keep_reported=True), delete=True) == 0
    assert capsys.readouterr().out.count("(paused)") == 6
    assert not list(store.root.glob("rl/.scratch-*/checkpoint")) and select(plan, store).choices[0].chosen
    remove(plan, Rule(["dft seed=1", "dft seed=2"]), delete=True)
    assert len(list(store.root.glob("rl/.scratch-*"))) == 4 and select(plan, store).undecided


def test_a_score_that_is_not_there_is_named(plan, driver):
    store = Store(plan.root)
    for stage in plan.stages.values():
        if stage.kind == "rl":
            store.scratch(stage).mkdir(parents=True)
            note_pause(store.scratch(stage), 1, {"pass_rate": 0.5})
    with pytest.raises(StoreError, match="was not validated at step 1; leave that rung out"):
        select(plan, store)


def test_several_runs_of_a_branch_are_refused(tmp_path, capsys):
    given = [*SETTINGS, "sft.publish_steps=[2]", "rl.from=all", f"run.root={tmp_path}"]
    assert call(["plan", "microworld", *given]) == 2
    assert "has 2 RL runs from SFT checkpoints; set rl.from=final" in capsys.readouterr().err
