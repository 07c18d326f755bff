"""Each phase of a run has a limit of its own."""

import time

import pytest

from rl_stage.time_limit import time_limit


def test_a_phase_that_hangs_ends_and_is_named():
    began = time.monotonic()
    with (
        pytest.raises(TimeoutError, match=r"rl\.step_timeout: weight sync of step 3 took longer"),
        time_limit(0.2) as begin,
    ):
        begin("weight sync of step 3")
        time.sleep(30)
    assert time.monotonic() - began < 10


def test_each_phase_has_its_own_time():
    with time_limit(2.0) as begin:
        for step in range(4):
            begin(f"step {step}")
            time.sleep(0.7)
