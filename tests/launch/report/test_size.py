"""The report of a large sweep: 40 branches stay under 2 MB and 10 s of a processor."""

from __future__ import annotations

import time

import pytest

from launch.report import synthetic
from launch.report.write import write


@pytest.mark.slow
def test_forty_branches_make_a_small_page_in_little_time(tmp_path):
    plan = synthetic.sweep(tmp_path, rates=len(synthetic.RATES))
    assert len(plan.branches) == 40
    synthetic.fill(plan)
    begun = time.process_time()
    found = write(plan)
    assert time.process_time() - begun < 10, "the bench measures it by the clock"
    files = sum(path.stat().st_size for path in found.path.parent.rglob("*") if path.is_file())
    assert found.path.stat().st_size < 2_000_000 and files < 4_000_000
    text = found.path.read_text()
    assert text.count("<tr") > 40 * 8 and "RL was predicted by" in text
