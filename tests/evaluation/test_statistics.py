import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

from evaluation.statistics import bootstrap, holm, paired_comparison, pass_at_k


@pytest.mark.parametrize("num_samples", range(1, 9))
def test_pass_at_k_equals_the_enumeration_of_all_subsets(num_samples):
    for num_correct in range(num_samples + 1):
        outcomes = [True] * num_correct + [False] * (num_samples - num_correct)
        for k in range(1, num_samples + 1):
            subsets = list(itertools.combinations(outcomes, k))
            expected = sum(any(subset) for subset in subsets) / len(subsets)
            assert pass_at_k(num_samples, num_correct, k) == pytest.approx(expected, abs=1e-15)


def test_pass_at_k_keeps_precision_where_floats_would_lose_it():
    assert pass_at_k(10**6, 1, 1) == 1e-6
    assert pass_at_k(100_000, 50_000, 64) == pytest.approx(1 - 0.5**64, abs=1e-12)
    assert pass_at_k(5, 5, 5) == 1.0
    assert pass_at_k(5, 0, 5) == 0.0


@pytest.mark.parametrize(("num_samples", "num_correct", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1), (0, 0, 1)])
def test_pass_at_k_refuses_impossible_counts(num_samples, num_correct, k):
    with pytest.raises(ValueError, match="pass_at_k"):
        pass_at_k(num_samples, num_correct, k)


def test_bootstrap_covers_a_known_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        rates = rng.beta(0.5, 0.5, size=60)
        outcomes = rng.random((60, 8)) < rates[:, None]
        estimate = bootstrap(outcomes, seed=trial, resamples=500)
        covered += estimate.low <= 0.5 <= estimate.high
    assert 0.91 <= covered / 400 <= 0.98


def test_bootstrap_is_seeded_and_resamples_whole_problems():
    repeated = np.repeat(np.array([[0.0], [1.0], [1.0], [0.0]]), 50, axis=1)
    once = bootstrap(repeated, seed=3, resamples=300)
    assert once == bootstrap(repeated, seed=3, resamples=300)
    # 200 equal samples of four problems are four observations, so the interval must be wide.
    assert once.n == 4 and once.high - once.low >= 0.5


def test_bootstrap_of_a_statistic():
    lengths = np.arange(200.0).reshape(100, 2)
    estimate = bootstrap(
        lengths, seed=0, resamples=200, statistic=lambda sample: np.median(sample.reshape(len(sample), -1), axis=1)
    )
    assert estimate.value == 99.5
    assert estimate.low < 99.5 < estimate.high


@pytest.mark.parametrize("n", [1, 30])
def test_an_extreme_proportion_has_the_exact_binomial_bound(n):
    none = bootstrap(np.zeros(n), seed=0, resamples=10, proportion=True)
    every = bootstrap(np.ones(n), seed=0, resamples=10, proportion=True)
    # P(no success in n trials at rate `high`) is alpha / 2.
    assert (1 - none.high) ** n == pytest.approx(0.025)
    assert (none.value, none.low) == (0.0, 0.0)
    assert (every.value, every.high) == (1.0, 1.0) and every.low == pytest.approx(1 - none.high)


@pytest.mark.parametrize(
    "arguments",
    [
        {"values": [], "seed": 0, "resamples": 10},
        {"values": [math.nan], "seed": 0, "resamples": 10},
        {"values": [1.0], "seed": 0, "resamples": 0},
        {"values": [1.0], "seed": 0, "resamples": 10, "confidence": 1.0},
    ],
)
def test_bootstrap_refuses(arguments):
    with pytest.raises(ValueError, match="bootstrap"):
        bootstrap(**arguments)


def test_paired_comparison_keeps_its_error_rate_and_finds_a_difference():
    rng = np.random.default_rng(1)
    difficulty = rng.random(80)
    rejected = 0
    for trial in range(300):
        a = rng.random(80) < difficulty
        b = rng.random(80) < difficulty
        rejected += paired_comparison(a, b, seed=trial, resamples=400).p_value < 0.05
    assert rejected / 300 <= 0.09
    a = (rng.random(80) < difficulty).astype(float)
    b = np.maximum(a, rng.random(80) < 0.5)
    found = paired_comparison(a, b, seed=0, resamples=2000)
    assert found.low > 0 and found.p_value < 0.01 and found.difference == pytest.approx(b.mean() - a.mean())


def test_paired_comparison_of_equal_scores_has_no_evidence():
    same = np.array([0.0, 1.0, 0.5])
    assert paired_comparison(same, same, seed=0, resamples=100).p_value == 1.0
    with pytest.raises(ValueError, match="shapes"):
        paired_comparison(same, same[:2], seed=0, resamples=100)


def test_holm_equals_the_hand_computed_adjustment():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_pass_at_k_imports_no_heavy_library():
    code = (
        "import sys; from evaluation import pass_at_k; assert pass_at_k(4, 2, 2);"
        "heavy = {'torch', 'vllm', 'ray', 'verl', 'transformers', 'pyarrow', 'pandas', 'sympy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
