"""What the first screen says of planted scores, and what it does not say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from measured import BEFORE, experiment, fill, of, publish_measure

from launch.graph.select import select
from launch.report.cells import SAME, Cells
from launch.report.page import page
from launch.report.source import Source
from launch.store import Store

LOW, HIGH = [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1] * 2, [4, 3, 4, 3, 4, 4, 4, 3, 4, 3, 4, 4] * 2
MIDDLE = [2, 1, 3, 2, 1, 2, 3, 2, 2, 1, 2, 3] * 2


def written(plan):
    return page(select(plan, Store(plan.root)), Source(Store(plan.root)), plan)[0]


def score(plan, objective, sft, rl=None):
    store = Store(plan.root)
    for label, counts in ((objective, sft), (f"{objective}.rl", rl)):
        for stage in (one for one in plan.stages.values() if one.label == f"{label}.target"):
            if counts is not None:
                publish_measure(store, stage, {"target": counts})


def table(made, title):
    (section,) = [one for one in made.sections if one.title == title]
    (grid,) = section.grids
    return {name: dict(zip(grid.columns, cells, strict=True)) for name, cells in grid.rows}


def test_a_difference_that_is_there_is_named_and_the_best_is_marked(tmp_path):
    plan = experiment(tmp_path, objectives=("sft", "dft", "gem"), names=("target",))
    score(plan, "sft", LOW, LOW)
    score(plan, "dft", MIDDLE, HIGH)
    score(plan, "gem", LOW, LOW)
    made = written(plan)
    first, second = made.answer
    assert (
        "after RL, dft (+0.792) ends higher than sft (paired tests, Holm, p <= 0.05); 1 other cannot be told" in first
    )
    assert "of one seed each, another may differ" in first
    assert second.startswith("RL raises pass@1 in 1 of 3 lines, most for dft: +")
    assert second.endswith("dft, the highest after SFT (0.500), ends first.")
    rows = table(made, "Scores")
    assert [name for name, cells in rows.items() if cells["RL pass@1"].best] == ["dft"]
    assert [name for name, cells in rows.items() if cells["SFT pass@1"].best] == ["dft"]
    assert "Marked as best" in next(one.note for one in made.sections if one.title == "Scores")


def test_where_nothing_can_be_told_apart_the_page_says_so_and_marks_nothing(tmp_path):
    plan = experiment(tmp_path, objectives=("sft", "dft"), names=("target",))
    score(plan, "sft", LOW, MIDDLE)
    score(plan, "dft", LOW, [*MIDDLE[1:], MIDDLE[0]])
    made = written(plan)
    assert made.answer[0].startswith(
        "In pass@1 on target after RL nothing can be told from sft: the largest difference"
    )
    assert "though tests tell none of these ends apart" in made.answer[1]
    assert not any(cell.best for section in made.sections for grid in section.grids for _, r in grid.rows for cell in r)
    assert "Marked as best" not in made.sections[0].note


def test_a_difference_that_is_zero_on_every_problem_has_no_interval(tmp_path):
    plan = experiment(tmp_path, objectives=("sft", "dft"), names=("target",))
    for objective in ("sft", "dft"):
        score(plan, objective, MIDDLE, MIDDLE)
    made = written(plan)
    gain = table(made, "Scores")["dft"]["gain from RL, pass@1"]
    contrast = table(made, "Against sft")["dft"]["difference in pass@1, over problems"]
    for cell in (gain, contrast):
        assert (cell.text, cell.value, cell.low, cell.high) == (SAME, 0.0, None, None)
    assert made.answer[1].startswith("RL changes pass@1 in none of 2 lines measurably")


def test_two_seeds_that_disagree_are_no_certainty(tmp_path):
    plan = experiment(tmp_path, objectives=("sft", "dft"), seeds=(1, 2), names=("target",))
    store = Store(plan.root)
    for label, counts in (("sft.rl", (LOW, LOW)), ("dft.rl", (HIGH, MIDDLE))):
        stages = [one for one in plan.stages.values() if one.label == f"{label}.target"]
        for stage, one in zip(stages, counts, strict=True):
            publish_measure(store, stage, {"target": one})
    made = written(plan)
    row = table(made, "Against sft")["dft"]
    assert row["p (Holm)"].value < 0.001 and row["over problems and seeds"].low < 0
    seeds = row["over problems and seeds"]
    assert (
        f"nothing can be told from sft over problems and seeds: the largest difference is that of dft, {seeds.head} ("
        in (made.answer[0])
    )
    assert f"{seeds.low:+.3f} to {seeds.high:+.3f}" in made.answer[0] and "p = " not in made.answer[0]
    assert "another may differ" not in made.answer[0]


def test_without_rl_the_base_is_what_sft_is_compared_with(tmp_path):
    plan = experiment(tmp_path, objectives=("sft", "dft"), rl=False, names=("target",))
    score(plan, "base", HIGH)
    score(plan, "sft", LOW)
    score(plan, "dft", LOW)
    made = written(plan)
    assert made.answer[1].startswith("SFT lowers the base model's pass@1 in all 2 lines, most for sft: -")
    assert made.picture is not None and "vertical lines: base model" in made.picture.caption


@pytest.mark.parametrize(("done", "said"), [(False, "Nothing has run yet."), (True, "Nothing is measured yet.")])
def test_before_anything_is_measured_there_is_no_answer_and_no_picture(tmp_path, done, said):
    plan = experiment(tmp_path, names=("target",))
    if done:
        store = fill(replace(plan, stages={k: v for k, v in plan.stages.items() if v.kind == "sft"}))
        assert store.root == tmp_path
    made = written(plan)
    assert made.answer == (said,) and made.picture is None


def test_what_was_compared_names_its_parts_and_says_that_few_chats_are_few(tmp_path):
    plan = experiment(tmp_path, objectives=("sft", "dft"), seeds=(0, 1))
    fill(plan)
    found = dict(written(plan).facts)
    assert found["Objectives"] == "sft, dft" and found["Target benchmark"] == "target, 12 problems, pass@k up to k = 4"
    assert found["Also"] == "sorting, dates" and found["Base model"] == "none"
    assert found["Held-out chats"] == "9; few: their intervals say little below 100"
    assert found["Done"] == "44 of 44 stages, 4 branches"


def test_a_cell_looks_as_its_text_reads(tmp_path):
    plan = experiment(tmp_path, seeds=(0, 1))
    fill(plan)
    cells = Cells(Source(Store(plan.root)), plan.branches[0].recipe.eval)
    made = written(plan)
    cell = table(made, "Scores")["dft"]["SFT pass@1"]
    assert cell.head == f"{sum(BEFORE['target']) / 48:.3f}" and cell.small[0].startswith("±")
    assert cell.text == f"{cell.head} {cell.small[0]} ({cell.small[1]})"
    assert cells.target({"benchmarks": {}}) == {} and of(plan, "dft")["target"].kind == "measure"


def test_while_a_run_goes_on_nothing_is_compared_that_is_not_there(tmp_path):
    plan = experiment(tmp_path, objectives=("sft", "dft"), names=("target",))
    score(plan, "sft", MIDDLE)
    assert written(plan).answer[0].startswith("Only sft is measured, so there is nothing to tell it from: pass@1 on ")
    assert "after SFT is 0.500 (" in written(plan).answer[0]
    score(plan, "dft", LOW, HIGH)
    first, second = written(plan).answer
    assert first == "So far 2 lines are measured, none comparable with the first one where training ends."
    assert second.startswith("RL raises pass@1 in the one line measured, most for dft: +")


def test_a_target_that_is_not_measured_is_said(tmp_path):
    plan = experiment(tmp_path, rl=False)
    publish_measure(Store(plan.root), of(plan, "dft")["held_out"], {})
    assert written(plan).answer == ("The target benchmark, target, is not measured; the tables have what is.",)
