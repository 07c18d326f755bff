"""docs/extend.md as it stands: one of everything of one's own, outside the package, in one recipe."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_world import SMALL

from launch.store import Store

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The files of the page in a folder of their own."""
    folder = tmp_path_factory.mktemp("extend")
    text = (ROOT / "docs" / "extend.md").read_text()
    for name, content in re.findall(r"```\w+\n# (\S+\.\w+)\n(.*?)```", text, re.DOTALL):
        (folder / name).write_text(content)
    return folder


def launch(folder, *arguments, timeout=280):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    command = [sys.executable, "-m", "launch", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.mark.timeout(300)
def test_one_of_everything_of_ones_own_runs_on_the_micro_world(page):
    done = launch(page, "run", "squares.yaml", *SMALL)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    store = Store(page / "runs")
    found = {(record.kind, record.label): directory for directory, record in store.artifacts()}
    summary = json.loads((found["prepare", "sft"] / "summary.json").read_text())
    assert summary["counts"]["sft_train"] + summary["counts"]["sft_val"] >= 2 * 29
    assert json.loads((found["lengths", "demonstrations"] / "lengths.json").read_text())["rows"][0][2] > 0
    metrics = json.loads((found["measure", "focal-focal.large_squares"] / "metrics.json").read_text())
    assert metrics["name"] == "large_squares" and metrics["counts"]["problems"] == 3
    report = next((page / "runs" / "squares").glob("*/report.md")).read_text()
    for text in ("Lengths of demonstrations", "Lengths of answers", "2 sets of answers were measured", "focal"):
        assert text in report, text
    again = launch(page, "run", "squares.yaml", *SMALL)
    assert again.returncode == 0 and "done" not in again.stdout.splitlines()[-2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages=[lengths.LENGTH]", "stage 'lengths.LENGTH': AttributeError"),
        ("lengths.long=0", "lengths.long=0: Input should be greater than 0"),
        ("analyses=[pass_at_j]", "unknown analysis 'pass_at_j'; did you mean pass_at_k?"),
        ("data.sft=[{source: squares.SQUARES, largest: 1}]", "data.sft.0.largest=1: Input should be greater than 1"),
        (
            "eval.benchmarks=[{name: large_squares.SMALL, max_tokens: 32}]",
            "benchmark 'large_squares.SMALL': AttributeError",
        ),
    ],
)
def test_what_leads_nowhere_is_refused_in_one_line(page, override, message):
    done = launch(page, "plan", "squares.yaml", override)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
