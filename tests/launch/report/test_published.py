"""Ours beside the papers' numbers in a report."""

from __future__ import annotations

import pytest

from launch.graph.builder import make_plan
from launch.report.lines import lines
from launch.report.parts import Cell
from launch.report.published import mean, sections


class Scores:
    """Cells that know the scores of some benchmarks: name and metric -> value."""

    def __init__(self, scores):
        self.scores = scores

    def metric(self, line, phase, name, metric):
        if (name, metric) not in self.scores:
            return Cell()
        value = self.scores[name, metric]
        return Cell(f"{value}", value, value - 0.02, value + 0.02, (f"measure/{phase}.{name}",))


@pytest.fixture
def row(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def made(recipe, *overrides):
        return make_plan(recipe, [*overrides, f"run.root={tmp_path}"])

    return made


def table(plan, scores):
    (section,) = sections(plan, Scores(scores), lines(plan))
    return section, {
        name: dict(zip(section.grids[0].columns, cells, strict=True)) for name, cells in section.grids[0].rows
    }


def test_ours_theirs_and_the_gap(row):
    plan = row("lp_sft/t2_magicoder", "objective=lp_sft", "model=qwen3_4b_base")
    section, found = table(plan, {("math500", "pass@1"): 0.5, ("mmlu", "pass@1"): 0.7})
    one = next(cells for name, cells in found.items() if name.endswith("SFT: MATH-500 pass@1"))
    assert (one["ours"].text, one["published"].text) == ("50.00 (48.00 to 52.00)", "54.86")
    assert one["gap"].text == "-4.86 (-6.86 to -2.86)" and one["gap"].records == ("measure/sft.math500",)
    task = next(cells for name, cells in found.items() if "MMLU" in name)
    assert task["published"].text == "69.55" and task["ours"].text.startswith("70.00")
    missing = next(cells for name, cells in found.items() if name.endswith("MATH-500 pass@16"))
    assert (missing["ours"].text, missing["published"].text, missing["gap"].text) == ("", "82.60", "")
    assert "Open in the paper, and taken here: loss reduction" in section.text and "(T15)" in section.title


def test_a_value_off_its_own_grid_is_marked(row):
    plan = row("lp_sft/t2_magicoder", "objective=gem", "model=llama3_1_8b")
    _, found = table(plan, {})
    marked = [name for name, cells in found.items() if cells.get("", Cell()).text]
    assert any(name.endswith("HE+ pass@1") for name in marked)


def test_phases_have_rows_of_their_own(row):
    plan = row("sed_sft/t1_sft_rl", "objective=gem", "model=llama3_2_3b_instruct")
    _, found = table(plan, {("gsm8k", "pass@1"): 0.6})
    shown = {name.split(" ", 1)[-1]: cells["published"].text for name, cells in found.items() if "gsm8k" in name}
    assert sorted(shown.values()) == ["59.20", "81.00"]


def test_a_mean_is_of_all_its_cells_or_of_none():
    cells = [Cell("", 0.4, 0.3, 0.5, ("a",)), Cell("", 0.6, 0.5, 0.7, ("b",))]
    found = mean(cells)
    assert found.value == pytest.approx(0.5) and found.high - found.value == pytest.approx(0.02**0.5 / 2)
    assert found.records == ("a", "b")
    assert mean([*cells, Cell()]).value is None and mean([]).value is None


def test_another_recipe_has_no_such_section(row):
    plan = row("microworld", "rl.enabled=false")
    assert sections(plan, Scores({}), lines(plan)) == []
