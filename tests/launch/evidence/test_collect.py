"""Runs come from the store, and from an earlier file where the same stages measured them in another store."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from measured import experiment, fill

from common.errors import ConfigError
from launch.commands import evidence
from launch.evidence.runs import collect, count, read_csv, write_csv
from tests.launch.report.test_predicted import sweep


def rounded(runs):
    """As a file has them: figures of six digits, fingerprints of sixteen."""
    return [
        replace(
            run,
            fingerprint=run.fingerprint[:16],
            figures={name: float(f"{value:.6g}") for name, value in run.figures.items()},
        )
        for run in runs
    ]


def test_a_run_has_what_its_stages_measured(tmp_path):
    plan, _ = sweep(tmp_path, 3, seeds=(1, 2))
    found = collect(plan)
    assert [(run.arm, run.seed, run.phase) for run in found] == [
        (f"o{number}", seed, "rl") for number in range(3) for seed in (1, 2)
    ]
    assert len({run.measured for run in found}) == 6 and all(run.figures["pass@1"] > 0 for run in found)


def test_what_another_store_measured_is_kept(tmp_path):
    plan, _ = sweep(tmp_path / "first", 3, seeds=(1, 2))
    found = collect(plan)
    elsewhere, _ = sweep(tmp_path / "second", 3, seeds=(1, 2))
    shutil.rmtree(elsewhere.root)
    with pytest.raises(ConfigError, match="nothing of this plan has been measured"):
        collect(elsewhere)
    write_csv(found, tmp_path / "runs.csv")
    assert collect(elsewhere, read_csv(tmp_path / "runs.csv")) == rounded(found)
    more = [replace(run, figures={"greedy": 0.5, "pass@1": 0.0}) for run in found]
    assert collect(plan, more) == [replace(run, figures={"greedy": 0.5, **run.figures}) for run in found]
    assert collect(plan, [replace(run, measured="0" * 16, right=(0,)) for run in found]) == found


def test_a_model_that_is_measured_in_part_is_left_out_and_counted(tmp_path, monkeypatch, capsys):
    plan = experiment(tmp_path, seeds=(1, 2), names=("target", "sorting"))
    store = fill(plan)
    monkeypatch.setattr(evidence, "planned", lambda arguments: plan)
    whole = collect(plan)
    assert count(plan) == len(whole) == 5  # the base, and of each seed the model after SFT and after RL
    missing = next(stage for stage in plan.stages.values() if stage.label == "dft.rl.sorting")
    shutil.rmtree(store.directory(missing))
    found = collect(plan)
    gone = [run for run in whole if run not in found]
    assert len(gone) == 1 and gone[0].phase == "rl"
    assert collect(plan, whole) == whole
    arguments = type("Arguments", (), {"output": str(tmp_path / "out"), "page": None})
    assert evidence.EVIDENCE.run(arguments) == 0
    assert "1 more are not measured, or not on all benchmarks yet" in capsys.readouterr().out


def test_runs_on_other_problems_are_refused(tmp_path):
    plan, store = sweep(tmp_path, 2, seeds=(1, 2))
    found = collect(plan)
    shutil.rmtree(store.directory(plan.stages[plan.branches[0].stages["rl@final"]]).parents[1] / "measure")
    with pytest.raises(ConfigError, match="were asked different problems"):
        collect(plan, [found[0], *(replace(run, right=(1,)) for run in found[1:])])


def test_a_file_with_rows_of_other_stages_is_left_alone(tmp_path, monkeypatch, capsys):
    plan, _ = sweep(tmp_path, 2, seeds=(1, 2))
    monkeypatch.setattr(evidence, "planned", lambda arguments: plan)
    found, path = collect(plan), tmp_path / "runs.csv"
    arguments = type("Arguments", (), {"output": str(tmp_path), "page": None})
    write_csv([*found, replace(found[0], seed=9, measured="0" * 16), replace(found[1], measured="")], path)
    before = path.read_text()
    with pytest.raises(ConfigError, match=r"runs\.csv: 2 of its 6 rows are of .* \(o0 seed 9 rl, o0 seed 2 rl\); name"):
        evidence.EVIDENCE.run(arguments)
    assert path.read_text() == before
    write_csv(found[:2], path)
    assert evidence.EVIDENCE.run(arguments) == 0 and read_csv(path) == rounded(found)
    assert "4 models of 2 arms" in capsys.readouterr().out
