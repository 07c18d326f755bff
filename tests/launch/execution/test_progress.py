from __future__ import annotations

import json
import math

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
