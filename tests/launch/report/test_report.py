from __future__ import annotations

import re
from dataclasses import replace

import pytest
from measured import AFTER, BEFORE, SAMPLES, bounds, experiment, fill, of, publish_measure

from evaluation.statistics import paired, share
from launch.report.lines import lines
from launch.report.tables import COLUMNS
from launch.store import Store

EMPTY = {"text": "", "value": None, "low": None, "high": None, "records": []}


def test_every_number_is_the_records_and_cites_it(tmp_path, rows_of):
    plan = experiment(tmp_path)
    fill(plan)
    rows = rows_of(plan)
    assert list(rows) == ["base model", "dft"]
    dft = rows["dft"]
    before, after = ([c / SAMPLES for c in counts["target"]] for counts in (BEFORE, AFTER))
    gain = paired(before, after, seed=0)
    assert dft["gain"]["value"] == pytest.approx(sum(after) / 12 - sum(before) / 12)
    assert (dft["gain"]["low"], dft["gain"]["high"]) == (gain.low, gain.high)
    assert dft["sft_pass1"]["value"] == pytest.approx(sum(before) / 12)
    assert dft["sft_passk"]["value"] == pytest.approx(10 / 12)
    assert dft["rl_general"]["value"] == pytest.approx((0.75 + 0.5) / 2)
    assert dft["entropy"]["value"] == 0.5 and dft["time"]["value"] == 20.0 and dft["memory"]["text"] == "2.00 GB"
    assert dft["gain_greedy"]["value"] == pytest.approx(
        (sum(a > 0.5 for a in after) - sum(b > 0.5 for b in before)) / 12
    )
    addresses = {stage.address for stage in plan.stages.values()}
    for name in COLUMNS:
        assert dft[name]["records"] and set(dft[name]["records"]) <= addresses
    assert rows["base model"]["rl_pass1"] == EMPTY
    # A number cites the stages that measured it, and no others.
    sft, rl = of(plan, "dft"), of(plan, "dft.rl")
    assert dft["sft_pass1"]["records"] == [sft["target"].address]
    assert dft["gain"]["records"] == [sft["target"].address, rl["target"].address]
    assert dft["rl_general"]["records"] == [rl["sorting"].address, rl["dates"].address]
    assert dft["entropy"]["records"] == [sft["held_out"].address]


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_no_metric_is_printed_without_an_interval(tmp_path, rows_of, seeds):
    plan = experiment(tmp_path, seeds=seeds)
    fill(plan)
    for name, cells in rows_of(plan).items():
        for column in set(COLUMNS) - {"time", "memory"}:
            cell = cells[column]
            assert not cell["text"] or (cell["low"] <= cell["value"] <= cell["high"]), (name, column)
            assert not cell["text"] or cell["text"].endswith(f"({bounds(cell)})"), (name, column)
    # Of the other tables of results too, whatever their columns are.
    text = (tmp_path / "toy" / "report.md").read_text()
    for title, count in (("Scores by benchmark", 3), ("Diversity and drift", 3)):
        table = [line for line in text.split(f"## {title}")[1].split("## ")[0].splitlines() if line.startswith("| ")]
        values = [cell for line in table[2:] for cell in line.split(" | ")[1:] if cell.strip(" |")]
        assert len(values) == 3 * count
        assert all(re.match(r"(\*\*)?[\d.]+( ± [\d.]+)? \([\d.]+ to [\d.]+\)", value) for value in values)


def test_over_seeds_the_bounds_are_means_and_cover_the_interval_of_the_means(tmp_path, rows_of):
    plan = experiment(tmp_path, seeds=(0, 1))
    store = Store(plan.root)
    one, other = BEFORE, {**BEFORE, "target": [(count + 1) % 4 for count in BEFORE["target"]]}
    measured = [stage for stage in plan.stages.values() if stage.label == "dft.target"]
    assert len(measured) == 2
    for stage, correct in zip(measured, (one, other), strict=True):
        publish_measure(store, stage, correct)
    cell = rows_of(plan)["dft"]["sft_pass1"]
    sides = [[count / SAMPLES for count in correct["target"]] for correct in (one, other)]
    single = [share(side) for side in sides]
    assert cell["low"] == pytest.approx(sum(found.low for found in single) / 2)
    assert cell["high"] == pytest.approx(sum(found.high for found in single) / 2)
    both = share([sum(pair) / 2 for pair in zip(*sides, strict=True)])
    assert cell["low"] <= both.low and both.high <= cell["high"]


def test_missing_and_damaged_records_leave_cells_empty(tmp_path, rows_of):
    plan = experiment(tmp_path)
    assert rows_of(plan)["dft"]["sft_pass1"]["text"] == ""
    store = fill(plan)
    metrics = store.directory(of(plan, "dft.rl")["target"]) / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"pass@1"', '"pass@3"', 1))
    dft = rows_of(plan)["dft"]
    assert dft["sft_pass1"]["text"] and dft["rl_pass1"]["text"] == dft["gain"]["text"] == ""
    assert "metrics.json differs from its sha256" in (tmp_path / "toy" / "report.md").read_text()
    assert dft["rl_general"]["text"]  # the other benchmarks were measured apart


def test_a_mean_over_benchmarks_waits_for_all_of_them(tmp_path, rows_of):
    plan = experiment(tmp_path)
    store = Store(plan.root)
    for name, stage in of(plan, "dft").items():
        if name != "dates":
            publish_measure(store, stage, BEFORE)
    dft = rows_of(plan)["dft"]
    assert dft["sft_pass1"]["text"] and dft["sft_general"] == EMPTY
    publish_measure(store, of(plan, "dft")["dates"], BEFORE)
    assert rows_of(plan)["dft"]["sft_general"]["value"] == pytest.approx((1.0 + 0.5) / 2)


@pytest.mark.parametrize(("minimum", "value"), [(0.6, 0.75), (1.1, None)])
def test_benchmarks_that_the_base_model_fails_leave_the_mean(tmp_path, rows_of, minimum, value):
    plan = experiment(tmp_path)
    fill(plan)
    (branch,) = plan.branches
    section = branch.recipe.eval.model_copy(update={"base_minimum": minimum})
    recipe = branch.recipe.model_copy(update={"eval": section})
    rows = rows_of(replace(plan, branches=[replace(branch, recipe=recipe)]))
    assert rows["dft"]["rl_general"]["value"] == value


def test_seeds_make_one_row_with_gains_paired_over_problems(tmp_path, rows_of):
    plan = experiment(tmp_path, seeds=(0, 1, 2))
    store = fill(plan)
    (line,) = [line for line in lines(plan) if line.name == "dft"]
    assert len(line.members) == 3
    dft = rows_of(plan)["dft"]
    assert "±" in dft["sft_pass1"]["text"] and len(dft["gain"]["records"]) == 6
    before, after = ([c / SAMPLES for c in counts["target"]] for counts in (BEFORE, AFTER))
    assert dft["gain"]["low"] == paired(before, after, seed=0).low
    assert store.find(line.members[0].trained["sft"][0]) is not None
