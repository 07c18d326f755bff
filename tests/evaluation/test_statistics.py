import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

from evaluation.statistics import (
    bootstrap,
    holm,
    paired,
    pass_at_k,
)


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


def test_paired_keeps_its_error_rate_and_finds_a_difference():
    rng = np.random.default_rng(1)
    difficulty = rng.random(80)
    rejected = 0
    for trial in range(300):
        a = rng.random(80) < difficulty
        b = rng.random(80) < difficulty
        rejected += paired(a, b, seed=trial, flips=400).p < 0.05
    assert rejected / 300 <= 0.09
    a = (rng.random(80) < difficulty).astype(float)
    b = np.maximum(a, rng.random(80) < 0.5)
    found = paired(a, b)
    assert found.low > 0 and found.p < 0.01 and found.difference == pytest.approx(b.mean() - a.mean())


def test_paired_of_equal_scores_has_no_evidence():
    same = np.array([0.0, 1.0, 0.5])
    assert paired(same, same).p == 1.0
    with pytest.raises(ValueError, match="shapes"):
        paired(same, same[:2])


def test_holm_equals_the_hand_computed_adjustment():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def enumerated(differences):
    """Two-sided p-value of all sign patterns, one by one."""
    observed = abs(sum(differences))
    sums = [
        abs(sum(sign * one for sign, one in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return sum(one >= observed - 1e-9 for one in sums) / len(sums)


def test_paired_equals_the_enumeration_of_all_signs():
    found = paired(np.zeros(30), [1.0] * 6 + [0.0] * 24)
    assert found.p == 0.03125 and found.difference == pytest.approx(0.2)
    assert found.low <= found.difference <= found.high and found.low > 0
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 9, 12):
        a, b = rng.integers(0, 5, size=n) / 4, rng.integers(0, 5, size=n) / 4
        assert paired(a, b).p == pytest.approx(enumerated(list(b - a)), abs=1e-15)
        assert paired(b, a).p == paired(a, b).p
    assert paired([0.25, 0.5], [0.25, 0.5]) == paired([0.0, 1.0], [0.0, 1.0]) and paired([1.0], [1.0]).p == 1.0


def test_paired_gives_the_p_value_of_scipys_permutation_test():
    from scipy.stats import permutation_test

    rng = np.random.default_rng(3)
    a, b = rng.random(10), rng.random(10) + 0.2
    theirs = permutation_test(
        (a, b), lambda x, y: np.mean(y - x), permutation_type="samples", n_resamples=2**10, alternative="two-sided"
    )
    assert paired(a, b).p == pytest.approx(theirs.pvalue, abs=1e-12)


def test_paired_draws_signs_above_twenty_differences_and_keeps_its_error_rate():
    rng = np.random.default_rng(4)
    a, b = rng.random(60), rng.random(60)
    assert paired(a, b, seed=1) == paired(a, b, seed=1) and paired(a, b, seed=1).p == pytest.approx(
        paired(a, b, seed=2).p, abs=0.01
    )
    # One more than is enumerated, all one way: nearly as unlikely as can be.
    assert paired(np.zeros(21), np.ones(21)).p == pytest.approx(1 / 100_001)
    rejected = sum(paired(*rng.random((2, 15))).p < 0.05 for _ in range(400))
    assert rejected / 400 <= 0.075


def test_what_is_detectable_is_found_four_times_in_five():
    rng = np.random.default_rng(5)
    noise = rng.normal(size=100)
    detectable = paired(np.zeros(100), noise).detectable
    assert detectable == pytest.approx((1.959964 + 0.841621) * noise.std(ddof=1) / 10, rel=1e-6)
    trials = [paired(np.zeros(100), rng.normal(detectable, noise.std(ddof=1), 100)) for _ in range(100)]
    assert 0.68 <= sum(one.p < 0.05 for one in trials) / 100 <= 0.92
    assert paired([0.0], [1.0]).detectable == math.inf


def test_paired_refuses():
    with pytest.raises(ValueError, match="shapes"):
        paired([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="no problems"):
        paired([], [])


def test_pass_at_k_imports_no_heavy_library():
    code = (
        "import sys; from evaluation import pass_at_k; assert pass_at_k(4, 2, 2);"
        "heavy = {'torch', 'vllm', 'ray', 'verl', 'transformers', 'pyarrow', 'pandas', 'sympy', 'scipy'};"
        "heavy &= set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
