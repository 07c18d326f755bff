"""Differences between arms: known effects come out, and what must not be compared is refused."""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import ConfigError
from evaluation.statistics import over_seeds
from launch.evidence.differences import difference, of_problems
from launch.evidence.runs import Run


def arm(name: str, seed: int, shares: np.ndarray, phase: str = "rl", **figures: float) -> Run:
    """A run whose problems are right with these shares of 16 samples, drawn by its seed."""
    rng = np.random.default_rng([seed, len(name)])
    right = tuple(int(count) for count in rng.binomial(16, np.clip(shares, 0, 1)))
    return Run(name, seed, phase, f"{name}{seed}", 16, right, figures)


def study(effect: float, of_seed: float, seeds: int, problems: int, draw: int) -> list[Run]:
    """Two arms of the same problems, the second better by `effect`, each seed off by a draw of deviation `of_seed`."""
    rng = np.random.default_rng(draw)
    shares = rng.uniform(0.2, 0.7, problems)
    shifts = {(name, seed): rng.normal(0, of_seed) for name in ("a", "bb") for seed in range(seeds)}
    return [
        arm(name, seed + 100 * draw, shares + shift + (effect if name == "bb" else 0.0))
        for (name, seed), shift in shifts.items()
    ]


def test_pass_at_k_of_a_run_is_the_unbiased_estimate():
    run = Run("a", 0, "rl", "f", 4, (0, 1, 4), {})
    assert of_problems(run, "pass@1").tolist() == [0.0, 0.25, 1.0]
    assert of_problems(run, "pass@2").tolist() == [0.0, 0.5, 1.0]
    assert of_problems(run, "greedy") is None


def test_a_difference_over_problems_is_that_of_over_seeds():
    runs = study(0.1, 0.02, 6, 200, 0)
    found = difference(runs, "bb", "a", "rl", "pass@1")
    rows = [of_problems(b, "pass@1") - of_problems(a, "pass@1") for a, b in zip(runs[:6], runs[6:], strict=True)]
    assert (found.value, found.low, found.high) == pytest.approx(
        [getattr(over_seeds(rows), name) for name in ("value", "low", "high")]
    )
    assert found.seeds == 6 and found.p < 0.001 < found.detectable < 0.1


@pytest.mark.parametrize("effect", [0.0, 0.05])
def test_intervals_cover_and_a_null_effect_is_rejected_as_often_as_it_says(effect):
    found = [difference(study(effect, 0.02, 6, 128, draw), "bb", "a", "rl", "pass@1") for draw in range(120)]
    covered = np.mean([one.low <= effect <= one.high for one in found])
    assert covered > 0.9  # 95% nominally; 120 draws have a deviation of 0.02
    rejected = np.mean([one.p <= 0.05 for one in found])
    assert rejected < 0.1 if effect == 0 else rejected > 0.6
    assert all((one.p <= 0.05) == (one.low > 0 or one.high < 0) for one in found)


def test_a_scalar_is_compared_by_students_t_over_seeds():
    runs = [Run("a", seed, "sft", "f", 1, (0,), {"general": 0.5}) for seed in range(3)]
    runs += [Run("b", seed, "sft", "f", 1, (0,), {"general": 0.5 + 0.1 * (seed + 1)}) for seed in range(3)]
    found = difference(runs, "b", "a", "sft", "general")
    assert found.value == pytest.approx(0.2)
    assert found.high - found.value == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert found.p == pytest.approx(0.0742, abs=1e-4)


def test_what_cannot_be_compared_is_refused():
    runs = study(0.0, 0.0, 1, 10, 0)
    with pytest.raises(ConfigError, match="bb against a after rl: 1 common seeds"):
        difference(runs, "bb", "a", "rl", "pass@1")
    with pytest.raises(ConfigError, match="greedy was not measured"):
        difference(study(0.0, 0.0, 2, 10, 0), "bb", "a", "rl", "greedy")
