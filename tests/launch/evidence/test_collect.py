"""Runs come from the store, and from an earlier file where the same stages measured them in another store."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from common.errors import ConfigError
from launch.commands import evidence
from launch.evidence.runs import collect, read_csv, write_csv
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
    changed = [replace(run, measured="0" * 16, right=(0,)) for run in found]
    assert collect(plan, changed) == found
    assert collect(plan, [replace(run, figures={}) for run in found]) == found


def test_rows_of_other_stages_are_counted(tmp_path, monkeypatch, capsys):
    plan, _ = sweep(tmp_path, 2, seeds=(1, 2))
    monkeypatch.setattr(evidence, "planned", lambda arguments: plan)
    found = collect(plan)
    write_csv([*found, replace(found[0], measured="0" * 16)], tmp_path / "runs.csv")
    command = evidence.EVIDENCE
    arguments = type("Arguments", (), {"output": str(tmp_path), "page": None})
    assert command.run(arguments) == 0
    said = capsys.readouterr().out
    assert "4 models of 2 arms" in said and "1 rows that were there are of stages that this plan has not" in said
    assert read_csv(tmp_path / "runs.csv") == rounded(found)
