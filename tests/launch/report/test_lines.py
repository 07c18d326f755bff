from __future__ import annotations

from dataclasses import replace

import pytest
import toy
from measured import AFTER, BEFORE, branch_of, curve, measures, publish, publish_measure

from launch.report import steps
from launch.report.cells import Cells
from launch.report.lines import keys, lines
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


def test_rl_from_the_base_is_one_row_after_the_base_for_all_branches(tmp_path):
    recipe = toy.plan(tmp_path).branches[0].recipe
    base, alone = measures(None, "base"), toy.steps("base", "rl")
    after = measures(alone, "base.rl")
    branches, stages = [], {}
    for objective in ("sft", "dft"):
        sft = toy.steps(objective)
        tuned = toy.steps(objective, "rl", inputs={"model": sft})
        models = [
            ("base", "base", None, None, None, base),
            ("sft", "sft", None, "sft", sft, measures(sft, objective)),
            ("rl@base", "rl", "base", "rl@base", alone, after),
            ("rl@final", "rl", "final", "rl@final", tuned, measures(tuned, f"{objective}.rl")),
        ]
        overrides = (f"objective={objective}", *(("model.teacher.path=other",) if objective == "dft" else ()))
        branch, found = branch_of(objective, overrides, recipe, models)
        branches.append(branch)
        stages |= {stage.fingerprint: stage for stage in found}
    plan = replace(toy.plan(tmp_path), branches=branches, stages=stages)
    found = lines(plan)
    assert [line.name for line in found] == ["base model", "RL from the base", "sft", "dft"]
    (member,) = found[1].members
    assert set(member.models) == {"base", "rl"} and member.start is member.models["base"]
    assert member.trained == {"sft": (), "rl": (alone,)} and found[1].from_base
    assert [line.name for line in lines(plan, frozenset({"sft", "dft"}))] == ["base model", "RL from the base"]


def test_checkpoints_before_the_last_are_no_rows_but_known_by_phase_and_step(tmp_path):
    sft = toy.steps("dft")
    rl = toy.steps("dft", "rl", inputs={"model": sft})
    models = [
        ("sft@50", "sft", None, "sft", sft, measures(sft, "dft-50"), 50),
        ("sft", "sft", None, "sft", sft, measures(sft, "dft")),
        ("rl@final-20", "rl", "final", "rl@final", rl, measures(rl, "dft.rl-20"), 20),
        ("rl@final", "rl", "final", "rl@final", rl, measures(rl, "dft.rl")),
    ]
    (line,) = lines(planned(tmp_path, models))
    (member,) = line.members
    assert member.models["sft"].name == "sft" and member.models["rl"].name == "rl@final"
    found = {place: model.measures["target"].label for place, model in member.checkpoints.items()}
    assert found == {("sft", 50): "dft-50.target", ("rl", 20): "dft.rl-20.target"}


def test_scores_over_the_steps_end_with_the_last_checkpoint(tmp_path):
    sft = toy.steps("dft")
    early, last = measures(sft, "dft-50"), measures(sft, "dft")
    models = [("sft@50", "sft", None, "sft", sft, early, 50), ("sft", "sft", None, "sft", sft, last)]
    plan = planned(tmp_path, models)
    store = Store(plan.root)
    publish(store, sft, lambda folder: (folder / "checkpoints.json").write_text('{"final": 80, "steps": [50, 80]}'))
    for stages, counts in ((early, BEFORE), (last, AFTER)):
        for stage in stages.values():
            publish_measure(store, stage, counts)
    cells = Cells(Source(store), plan.branches[0].recipe.eval)
    (section,) = steps.sections(cells, lines(plan), keys(lines(plan)))
    (table,) = section.grids
    assert [name for name, _ in table.rows] == ["dft, SFT step 50", "dft, SFT step 80"]
    first, second = (dict(zip(table.columns, found, strict=True)) for _, found in table.rows)
    assert first["pass@1"].value == pytest.approx(sum(BEFORE["target"]) / 48)
    assert second["pass@1"].value == pytest.approx(sum(AFTER["target"]) / 48)
    assert first["pass@1"].records != second["pass@1"].records and "KL from base" not in table.columns
    assert section.figures[0].svg.startswith("<svg")
    assert steps.sections(cells, [replace(lines(plan)[0], members=())], {}) == []
