"""All seven items on a CPU, with small sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(3600)
def test_a_rehearsal_runs_every_item(tmp_path):
    command = ["-m", "launch.gpu_check", "--device", "cpu", "--tiny", "--minutes", "50", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert done.returncode == 0, done.stdout[-3000:]
    assert [item["status"] for item in found["items"]] == ["done"] * 7
    left_out = {part["part"]: part["not_run"] for item in found["items"] for part in item["parts"] if "not_run" in part}
    assert left_out.keys() == {"compiled", "varlen attention", "quickstart"}
    parts = {part["part"]: part["figures"] for item in found["items"] for part in item["parts"] if "figures" in part}
    assert parts["interpreter"]["far"] == 0
    assert max(parts["losses"].values()) < 1e-4
    assert parts["pipeline"]["rl_steps"] == 2 and parts["pipeline"]["probability_difference_mean"] < 1e-5
    again = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and again.stdout.count("done by an earlier run") == 7
