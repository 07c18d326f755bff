import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

from evaluation.statistics import (
    bootstrap,
    class_weights,
    holm,
    over_seeds,
    paired,
    pass_at_k,
    same_problems,
    share,
    spearman,
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


def test_a_weighted_comparison_is_the_enumeration_of_the_weighted_signs():
    rng = np.random.default_rng(6)
    a, b = rng.integers(0, 3, size=8) / 2, rng.integers(0, 3, size=8) / 2
    weights = class_weights(list("aabbbbcc"))
    found = paired(a, b, weights=weights)
    assert found.difference == pytest.approx(np.mean([(b - a)[:2].mean(), (b - a)[2:6].mean(), (b - a)[6:].mean()]))
    assert found.p == pytest.approx(enumerated(list(weights * (b - a))), abs=1e-15)
    assert paired(a, b, weights=np.full(8, 3.0)) == paired(a, b)
    with pytest.raises(ValueError, match="weights: 8 that are finite"):
        paired(a, b, weights=[1.0])


def test_signs_drawn_above_twenty_differences_find_the_exact_tail():
    from scipy.stats import binomtest

    scores = np.array([1.0] * 40 + [0.0] * 20)
    found = paired(scores, 1 - scores)  # 40 one way, 20 the other: McNemar's exact test
    assert found.p == pytest.approx(binomtest(20, 60).pvalue, abs=0.002)
    steps = np.repeat([1.0, 0.5], 15)
    # Sums of the signs of ones and halves, by convolution of both binomials.
    ways = {0: 1.0}
    for step in steps:
        ways = {
            total: ways.get(total - step, 0) / 2 + ways.get(total + step, 0) / 2
            for total in {known + sign * step for known in ways for sign in (-1, 1)}
        }
    observed = sum(steps[:11]) - sum(steps[11:13]) + sum(steps[13:])
    tail = sum(p for total, p in ways.items() if abs(total) >= observed)
    signs = np.ones(30)
    signs[11:13] = -1
    assert paired(np.full(30, 0.5), 0.5 + signs * steps / 2).p == pytest.approx(tail, abs=0.001)


def test_the_interval_of_a_difference_covers_it_where_a_bootstrap_does_not():
    rng = np.random.default_rng(7)
    for gained, lost, least in ((0.1, 0.02, 0.94), (0.3, 0.1, 0.94), (0.03, 0.03, 0.96)):
        draws = rng.choice([1.0, -1.0, 0.0], size=(500, 30), p=[gained, lost, 1 - gained - lost])
        found = [paired((one < 0).astype(float), (one > 0).astype(float)) for one in draws]
        covered = np.mean([one.low <= gained - lost <= one.high for one in found])
        assert covered >= least
    # Problems that tie are no certainty, and an interval without zero goes with a p-value below 5%.
    tie = paired(np.zeros(30), np.zeros(30))
    assert tie.low == -tie.high < -0.05 and tie.p == 1.0
    five = paired(np.zeros(30), [1.0] * 5 + [0.0] * 25)
    assert five.p == 0.0625 and five.low == 0.0


def test_nothing_is_detectable_on_five_problems_and_one_answer_on_none():
    assert paired(np.zeros(5), [1.0, 0, 0, 0, 0]).detectable == math.inf
    # Six problems have to change all one way; that is 6 of 30 for single answers, 6 quarters of 30 for four samples.
    assert paired(np.zeros(30), np.zeros(30)).detectable == pytest.approx(6 / 30)
    quarters = np.array([0.25, 0.5] * 15)
    assert paired(quarters, quarters).detectable == pytest.approx(6 / 4 / 30)


@pytest.mark.parametrize(("right", "n"), [(1, 30), (29, 30), (7, 20), (1, 2)])
def test_the_share_of_single_answers_has_wilsons_interval(right, n):
    z, p = 1.959963984540054, right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = share([1.0] * right + [0.0] * (n - right))
    assert (found.low, found.high) == (pytest.approx(middle - half), pytest.approx(middle + half))
    assert found == bootstrap([1.0] * right + [0.0] * (n - right), seed=0, resamples=1, proportion=True)


def test_the_share_of_right_samples_covers_its_mean_where_a_bootstrap_does_not():
    rng = np.random.default_rng(8)
    for n, samples, a, b, least in (
        (30, 1, 1, 29, 0.9),
        (30, 16, 0.3, 1, 0.92),
        (12, 16, 1, 1, 0.92),
        (200, 4, 0.05, 5, 0.92),
    ):
        covered = {"wilson": 0, "bootstrap": 0}
        for trial in range(300):
            rates = rng.binomial(samples, rng.beta(a, b, n)) / samples
            for name, one in (("wilson", share(rates)), ("bootstrap", bootstrap(rates, seed=trial, resamples=200))):
                covered[name] += one.low <= a / (a + b) <= one.high
        assert covered["wilson"] / 300 >= least and covered["wilson"] >= covered["bootstrap"]
        if samples == 1:
            assert covered["bootstrap"] / 300 < 0.7
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        share([2.0])


def test_a_share_of_classes_counts_each_alike():
    found = share([1.0, 1.0, 1.0, 0.0], weights=class_weights(["a", "a", "a", "b"]))
    assert found.value == 0.5 and found.n == 4
    # Fewer effective problems than four alike: 1 / (1 / (4 * 3) + 1 / 4) = 3.
    whole = share([1.0] * 4, weights=class_weights(["a", "a", "a", "b"]))
    assert (whole.value, whole.high) == (1.0, 1.0) and whole.low == pytest.approx(0.025 ** (1 / 3))


def test_the_interval_over_samples_alone_covers_the_problems_own_mean():
    rng = np.random.default_rng(9)
    rates = rng.beta(0.5, 0.5, size=40)
    covered = narrower = 0
    for _ in range(300):
        drawn = rng.random((40, 8)) < rates[:, None]
        found = same_problems(drawn)
        covered += found.low <= rates.mean() <= found.high
        narrower += found.high - found.low < share(drawn.mean(axis=1)).high - share(drawn.mean(axis=1)).low
    assert covered / 300 >= 0.93 and narrower == 300
    assert same_problems([[True] * 4] * 5).low < 1.0
    with pytest.raises(ValueError, match="two samples"):
        same_problems([[True]])


def test_an_interval_over_seeds_is_robust_to_clusters_of_both_kinds():
    rng = np.random.default_rng(10)
    covered = of_problems = 0
    for _ in range(300):
        seeds, problems = rng.normal(0, 0.05, (6, 1)), rng.normal(0, 0.1, (1, 40))
        differences = 0.03 + seeds + problems + rng.normal(0, 0.2, (6, 40))
        found = over_seeds(differences)
        covered += found.low <= 0.03 <= found.high
        alone = paired(np.zeros(40), differences.mean(axis=0))
        of_problems += alone.low <= 0.03 <= alone.high
    assert covered / 300 >= 0.92 > 0.9 > of_problems / 300
    # By hand: the variance of sums over seeds and over problems, less that of single cells, each n / (n - 1).
    d = rng.normal(size=(3, 5))
    e = d - d.mean()
    parts = [(e.sum(axis=1) ** 2).sum() * 3 / 2, (e.sum(axis=0) ** 2).sum() * 5 / 4, (e**2).sum() * 15 / 14]
    variance = max(parts[0] + parts[1] - parts[2], parts[0], parts[1]) / 15**2
    found = over_seeds(d)
    assert found.high - found.value == pytest.approx(4.302653 * variance**0.5, rel=1e-5) and found.n == 3
    with pytest.raises(ValueError, match="two seeds"):
        over_seeds([[1.0, 2.0]])


def test_spearman_equals_the_enumeration_of_all_orders():
    from scipy.stats import rankdata, spearmanr

    rng = np.random.default_rng(11)
    for n, levels in ((4, 9), (6, 9), (7, 3)):
        x, y = rng.permutation(n) % levels, rng.integers(0, levels, size=n)
        found = spearman(x, y)
        assert found.value == pytest.approx(spearmanr(x, y).statistic) and found.n == n
        ranks = rankdata(x), rankdata(y)
        every = np.array([np.corrcoef(order, ranks[1])[0, 1] for order in itertools.permutations(ranks[0])])
        tails = [np.mean(every >= found.value - 1e-9), np.mean(every <= found.value + 1e-9)]
        assert found.p == pytest.approx(min(1.0, 2 * min(tails)))
    assert spearman([1, 2, 3], [1, 2, 3]).low == -1.0
    with pytest.raises(ValueError, match="no order"):
        spearman([1, 1, 1], [1, 2, 3])


def test_the_interval_of_spearman_covers_the_correlation(monkeypatch):
    monkeypatch.setattr("evaluation.statistics.PAIRINGS", 50)  # p is not looked at
    rng = np.random.default_rng(12)
    rho = 6 / math.pi * math.asin(0.6 / 2)  # of a normal pair with correlation 0.6
    covered = 0
    for _ in range(300):
        x = rng.normal(size=25)
        found = spearman(x, 0.6 * x + 0.8 * rng.normal(size=25))
        covered += found.low <= rho <= found.high
    assert 0.92 <= covered / 300 <= 0.985
