"""Rank correlations against scipy, and their intervals against the truth over simulated sweeps."""

from types import SimpleNamespace

import numpy as np
import pytest

from evaluation.readiness.association import Outcome, associations, kendall_tau, rank_correlation, regret_of

SWEEPS, BRANCHES, SEEDS = 200, 12, 2
RIGHT = 0.9  # correlation of the planted predictor with the score, of branches' means over seeds


def test_correlations_are_scipys_with_ties():
    from scipy.stats import kendalltau, spearmanr

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (20, 9)).astype(float), rng.integers(0, 5, (20, 9)).astype(float)
    assert rank_correlation(x, y) == pytest.approx([spearmanr(a, b)[0] for a, b in zip(x, y, strict=True)])
    assert kendall_tau(x, y) == pytest.approx([kendalltau(a, b)[0] for a, b in zip(x, y, strict=True)])
    assert np.isnan(rank_correlation(np.ones((1, 9)), y[:1])[0]) and np.isnan(kendall_tau(np.ones((1, 9)), y[:1])[0])


def test_regret_is_what_the_choice_cost():
    assert regret_of(np.array([[1.0, 3.0, 2.0]]), np.array([[0.9, 0.6, 0.7]])) == pytest.approx([0.3])


def sweep(rng, correlation):
    """Figures and scores of (branches, seeds), whose means over seeds correlate as asked."""
    noise = 0.3
    means = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], BRANCHES)
    within = rng.normal(size=(BRANCHES, SEEDS, 2)) * noise * SEEDS**0.5
    found = (means * (1 - noise**2) ** 0.5)[:, None, :] + within
    return found[..., 0], found[..., 1]


def outcomes(figures, scores):
    return [Outcome(f"b{n}", tuple(f), tuple(s)) for n, (f, s) in enumerate(zip(figures, scores, strict=True))]


@pytest.mark.slow
def test_intervals_cover_at_their_rate_over_simulated_sweeps(monkeypatch):
    without_test = SimpleNamespace(p=1.0)  # the permutation test is slow, and has no say in the intervals
    monkeypatch.setattr("evaluation.readiness.association.spearman", lambda *_, **__: without_test)
    rng = np.random.default_rng(7)
    seen = (1 - 0.3**2) * RIGHT  # what the seeds' noise leaves of it
    truth = {
        "right": (6 / np.pi * np.arcsin(seen / 2), 2 / np.pi * np.arcsin(seen)),
        "noise": (0.0, 0.0),
    }
    covered = {(name, which): 0 for name in truth for which in ("spearman", "kendall")}
    for number in range(SWEEPS):
        figures, scores = sweep(rng, RIGHT)
        noise, _ = sweep(rng, 0.0)
        given = {"right": outcomes(figures, scores), "noise": outcomes(noise, scores)}
        found = associations(given, dict.fromkeys(given, "max"), seed=number, resamples=200)
        for name, values in truth.items():
            for which, value in zip(("spearman", "kendall"), values, strict=True):
                one = getattr(found[name], which)
                covered[name, which] += one.low <= value <= one.high
    rates = {key: count / SWEEPS for key, count in covered.items()}
    # 95%, less and more by three deviations of a binomial of 200, and what a percentile bootstrap of 12 errs
    assert all(0.89 <= rate <= 0.995 for rate in rates.values()), rates


def test_a_figure_whose_small_values_are_right_has_a_positive_correlation_and_too_few_have_none():
    rng = np.random.default_rng(1)
    figures, scores = sweep(rng, 0.95)
    given = {
        "loss": outcomes(-figures, scores),
        "wrong": outcomes(figures, scores),
        "few": outcomes(figures, scores)[:7],
    }
    given["equal"] = outcomes(np.zeros_like(figures), scores)
    found = associations(given, {"loss": "min", "wrong": "min", "few": "max", "equal": "max"}, resamples=100)
    assert set(found) == {"loss", "wrong"}
    assert found["loss"].spearman.value == pytest.approx(-found["wrong"].spearman.value)
    assert found["loss"].p_holm == pytest.approx(min(1.0, 2 * found["loss"].p))
    assert found["loss"].regret.value < found["loss"].at_random < found["wrong"].regret.value
    assert found["loss"].chosen == f"b{figures.mean(axis=1).argmax()}"
