"""The benchmark of memory: what it measures, and that it goes on where it stopped."""

from __future__ import annotations

import json

import numpy as np
import pytest

from evaluation.analyses import bench


def test_the_peak_of_anonymous_memory_is_seen_though_it_is_given_back():
    import time

    before = bench.anonymous()
    with bench.watched() as peak:
        block = np.ones(40 * 2**20 // 8)
        time.sleep(20 * bench.PERIOD)
        del block
    assert 38 * 2**20 < peak[0] - before < 60 * 2**20


def test_growth_is_memory_over_memory():
    found = [
        {"analysis": "drift", "size": 10, "mib": 8.0},
        {"analysis": "drift", "size": 100, "mib": 12.0},
        {"analysis": "tokens", "size": 10, "mib": 8.0},
    ]
    assert list(bench.growth(found, ["drift", "tokens"], [10, 100])) == [
        "drift: 10 times the tokens, 1.50 times the memory"
    ]


def test_a_run_that_is_out_of_time_is_continued(tmp_path, capsys, monkeypatch):
    command = ["--tokens", "2000", "4000", "--only", "plateaus", "--directory", str(tmp_path)]
    assert bench.main([*command, "--minutes", "0"]) == 0
    assert "not begun within 0 minutes" in capsys.readouterr().out and not (tmp_path / bench.RESULTS).exists()
    assert bench.main(command) == 0
    rows = [json.loads(line) for line in (tmp_path / bench.RESULTS).read_text().splitlines()]
    assert [row["size"] for row in rows] == [2000, 4000] and all(row["inputs"] == 5 for row in rows)
    assert [path.name for path in tmp_path.iterdir()] == [bench.RESULTS], "what is measured is deleted"
    first = capsys.readouterr().out
    monkeypatch.setattr(bench, "write", None)  # nothing is measured again
    assert bench.main(command) == 0 and capsys.readouterr().out == first
    assert "2 times the tokens" in first


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", bench.NAMES)
def test_memory_does_not_grow_with_the_tokens(tmp_path, name):
    found = bench.run(tmp_path, [1_000_000, 4_000_000], [name], float("inf"))
    small, large = (one["mib"] for one in found)
    assert large < 1.1 * small + 48
