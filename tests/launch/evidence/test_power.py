"""The components of variance that were planted come out, and the power that they promise is kept."""

from __future__ import annotations

import numpy as np
import pytest

from launch.evidence.differences import difference
from launch.evidence.power import Spread, components, spread
from tests.launch.evidence.test_differences import study


def test_planted_components_are_found():
    rng = np.random.default_rng(0)
    found = np.mean(
        [
            components(rng.normal(0, 0.02, (10, 1)) + rng.normal(0, 0.05, (1, 300)) + rng.normal(0, 0.2, (10, 300)))
            for _ in range(200)
        ],
        axis=0,
    )
    assert found == pytest.approx([0.02**2, 0.05**2, 0.2**2], rel=0.1)


def test_more_seeds_and_problems_detect_less():
    one = Spread(seed=0.02**2, problem=0.1**2, rest=0.2**2, pairs=1)
    assert one.detectable(8, 256) < one.detectable(4, 256) and one.detectable(8, 512) < one.detectable(8, 256)
    seeds = one.seeds_for(0.03, 512)
    assert seeds is not None and one.detectable(seeds, 512) <= 0.03 < one.detectable(seeds - 1, 512)
    assert one.seeds_for(0.001, 512) is None


def test_the_promised_power_is_kept():
    pilot = [run for draw in range(4) for run in study(0.0, 0.015, 10, 128, draw)]
    size = spread(pilot, [("bb", "a")], "rl", "pass@1").detectable(8, 128)
    found = [difference(study(size, 0.015, 8, 128, draw), "bb", "a", "rl", "pass@1").p for draw in range(10, 130)]
    assert 0.7 < np.mean([p <= 0.05 for p in found]) < 0.97
