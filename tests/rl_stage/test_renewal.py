"""Which runs share a session."""

from __future__ import annotations

import pytest

from rl_stage.renewal import can_be_renewed

ALIKE = {"warm": True, "mode": "sync", "pause_at": None, "processes": 1, "devices": 1, "platform": "cpu", "verl": {}}


@pytest.mark.parametrize(
    ("change", "can"),
    [
        ({}, True),
        ({"verl": {"actor_rollout_ref.rollout.agent.num_workers": 1}}, True),
        ({"warm": False}, False),
        ({"mode": "colocate_async"}, False),
        ({"pause_at": 4}, False),
        ({"processes": 2}, False),
        ({"platform": "gpu"}, False),
        ({"verl": {"reward": {"num_workers": 1}}}, False),
        ({"verl": {"trainer.logger": ["tensorboard"]}}, False),
        ({"verl": {"algorithm.adv_estimator": "gae"}}, False),
    ],
)
def test_what_ends_with_its_run_shares_nothing(change, can):
    assert can_be_renewed(**ALIKE | change) is can
