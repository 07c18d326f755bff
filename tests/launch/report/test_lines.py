from __future__ import annotations

from dataclasses import replace

import pytest
import toy
from measured import branch_of, curve, measures, publish

from launch.report.cells import Cells
from launch.report.lines import lines
from launch.report.source import Source
from launch.report.write import write_report
from launch.store import Store


def planned(root, models, name="dft"):
    recipe = toy.plan(root).branches[0].recipe
    branch, stages = branch_of(name, (), recipe, models)
    return replace(toy.plan(root, *stages), branches=[branch])


def test_each_checkpoint_that_rl_starts_from_is_a_row_of_its_own(tmp_path):
    sft = toy.steps("dft")
    early, late = (toy.steps(name, "rl", inputs={"model": sft}) for name in ("dft-50", "dft"))
    models = [
        ("base", "base", None, None, None, measures(None, "base")),
        ("sft", "sft", None, "sft", sft, measures(sft, "dft")),
        ("sft@50", "sft", None, "sft", sft, measures(sft, "dft-50")),
        ("rl@50", "rl", "50", "rl@50", early, measures(early, "dft-50.rl")),
        ("rl@final", "rl", "final", "rl@final", late, measures(late, "dft.rl")),
    ]
    base, first, second = lines(planned(tmp_path, models))
    assert base.is_base and base.members[0].models["sft"].measures["target"].label == "base.target"
    assert [first.name, second.name] == ["dft, from 50", "dft, from final"]
    for line, label in ((first, "dft-50"), (second, "dft")):
        (member,) = line.members
        assert {phase: model.measures["target"].label for phase, model in member.models.items()} == {
            "base": "base.target",
            "sft": f"{label}.target",
            "rl": f"{label}.rl.target",
        }
        assert [stage.label for stage in member.trained["rl"]] == [label]
        assert member.trained["sft"] == (sft,) and member.last is member.models["rl"]


def test_of_an_averaged_model_the_average_is_shown_and_both_stages_take_time(tmp_path):
    sft = toy.steps("dft")
    average = toy.steps("dft", "average", inputs={"sft": sft})
    rl = toy.steps("dft", "rl", inputs={"model": average})
    models = [
        ("sft", "sft", None, "sft", sft, {}),
        ("average", "sft", None, "average", average, measures(average, "dft")),
        ("rl@final", "rl", "final", "rl@final", rl, measures(rl, "dft.rl")),
    ]
    plan = planned(tmp_path, models)
    (line,) = lines(plan)
    assert line.members[0].models["sft"].name == "average"
    store = Store(plan.root)
    for stage, seconds in ((sft, 30.0), (average, 5.0), (rl, 10.0)):
        publish(store, stage, curve("loss"), seconds=seconds)
    time = Cells(Source(store), plan.branches[0].recipe.eval).time(line)
    assert time.value == pytest.approx(45.0) and time.text == "35.0 s + 10.0 s" and len(time.records) == 3


def test_branches_that_selection_ended_have_no_row_and_what_it_dropped_is_no_measure(tmp_path):
    sft = toy.steps("dft")
    measured = measures(sft, "dft")
    models = [
        ("base", "base", None, None, None, measures(None, "base")),
        ("sft", "sft", None, "sft", sft, measured),
    ]
    plan = planned(tmp_path, models)
    assert [line.name for line in lines(plan, frozenset({"dft"}))] == ["base model"]
    stages = {mark: stage for mark, stage in plan.stages.items() if mark != measured["target"].fingerprint}
    line = lines(replace(plan, stages=stages))[1]
    assert set(line.members[0].models["sft"].measures) == set(measured) - {"target"}
    assert write_report(replace(plan, stages=stages)) == 0
