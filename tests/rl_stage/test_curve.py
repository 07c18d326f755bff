"""The curve survives a kill."""

import json

import pytest

from rl_stage.curve import Curve


@pytest.fixture
def curve(tmp_path):
    return Curve(tmp_path / "curve.jsonl")


def test_the_curve_goes_on_after_a_kill(curve):
    for step in range(4):
        curve.add(step, {"reward": step / 4, "kl": float("nan")})
    curve.path.write_text(curve.path.read_text() + '{"step": 4, "rew')
    again = Curve(curve.path)
    again.forget_after(2)
    again.add(3, {"reward": 1.0})
    rows = [json.loads(line) for line in curve.path.read_text().splitlines()]
    assert rows == [{"step": n, "reward": r} for n, r in ((0, 0.0), (1, 0.25), (2, 0.5), (3, 1.0))]
