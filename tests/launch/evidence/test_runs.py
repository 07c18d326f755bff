"""A study's CSV: what is written is read again, and another file is refused."""

from __future__ import annotations

import pytest

from common.errors import ConfigError
from launch.evidence.runs import Run, arms, of_arm, read_csv, write_csv

RUNS = [
    Run("base model", 0, "base", "0123456789abcdef", 16, (0, 16, 3), {"pass@1": 0.25}),
    Run("sft", 1, "sft", "1123456789abcdef", 16, (1, 2, 3), {"pass@1": 0.125, "readiness/greedy": 0.5}),
    Run("sft", 1, "rl", "2123456789abcdef", 16, (9, 9, 9), {"pass@1": 0.5625}),
]


def test_what_is_written_is_read_again(tmp_path):
    write_csv(RUNS, tmp_path / "runs.csv")
    assert read_csv(tmp_path / "runs.csv") == RUNS
    assert arms(RUNS) == ["sft"] and of_arm(RUNS, "sft", "rl") == {1: RUNS[2]}


def test_another_file_is_refused_by_name(tmp_path):
    (tmp_path / "runs.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=r"runs.csv: has no column arm"):
        read_csv(tmp_path / "runs.csv")
    write_csv(RUNS, tmp_path / "runs.csv")
    (tmp_path / "runs.csv").write_text((tmp_path / "runs.csv").read_text().replace(",0g3,", ",0?3,"))
    with pytest.raises(ConfigError, match=r"runs.csv, line 2"):
        read_csv(tmp_path / "runs.csv")
