from __future__ import annotations

import errno
import json
import math

import pytest

from launch.execution.progress import Reporter


def test_reporter_counts_every_call_and_writes_few(tmp_path):
    path = tmp_path / "progress.json"
    report = Reporter(path, 3)
    for done in range(1000):
        report(done, 1000, loss=done / 2)
    assert json.loads(path.read_text())["counter"] < 900
    report(1000, 1000, loss=0.5)
    progress = json.loads(path.read_text())
    assert (progress["counter"], progress["done"], progress["total"], progress["attempt"]) == (1001, 1000, 1000, 3)
    assert progress["metrics"] == {"loss": 0.5}


def test_a_loss_that_is_not_finite_does_not_end_the_stage(tmp_path):
    report = Reporter(tmp_path / "progress.json", 1)
    report(1, 1, loss=math.nan, entropy=math.inf, lr=1.0)
    assert json.loads((tmp_path / "progress.json").read_text())["metrics"] == {"loss": None, "entropy": None, "lr": 1.0}


def test_the_same_again_is_no_progress(tmp_path):
    report = Reporter(tmp_path / "progress.json", 1)
    for _ in range(3):
        report(1, 1, loss=0.5)
    assert json.loads((tmp_path / "progress.json").read_text())["counter"] == 1
    report(1, 1, loss=0.4)
    assert json.loads((tmp_path / "progress.json").read_text())["counter"] == 2


@pytest.mark.parametrize("value", [None, "high", [1.0, 2.0], object()])
def test_a_metric_that_is_no_number_is_written_as_null(tmp_path, value):
    Reporter(tmp_path / "progress.json", 1)(1, 1, odd=value, fine=2)
    assert json.loads((tmp_path / "progress.json").read_text())["metrics"] == {"odd": None, "fine": 2.0}


def test_writing_progress_never_ends_the_training(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("launch.execution.progress.write_json", full)
    Reporter(tmp_path / "progress.json", 1)(1, 1, loss=0.5)
    monkeypatch.undo()
    Reporter(tmp_path / "gone" / "progress.json", 1)(1, 1)
    Reporter(tmp_path / "progress.json", 1)(math.nan, 1)  # type: ignore[arg-type]
