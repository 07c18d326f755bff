"""Unbiased pass@k, intervals of means over problems, paired comparisons, correlations.

Intervals of shares are Wilson's, those of paired differences Agresti and Min's, both with what problems of several
samples need; a bootstrap over problems would be too short near 0 and 1 and where most problems tie, and is kept for
lengths, entropies and diversity. Problems are drawn at random, and each of them with all its samples, so that an
interval over problems is one over problems and samples.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

RESAMPLES_PER_CHUNK = 256
EXACT_DIFFERENCES = 20  # a million sign patterns
FLIPS = 100_000
FLIPS_PER_CHUNK = 1_000
# Two to the power of minus 5 is the least two-sided p-value of so many problems: of fewer it exceeds 5%.
FEWEST_DIFFERENCES = 6
PAIRINGS = 100_000  # more than 8!: up to eight points, all of them


@dataclass(frozen=True)
class Estimate:
    """A metric with its interval: `value`, `low`, `high`, and `n`, the number of problems behind it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Paired:
    """Difference of two means over the same problems with its interval, p-value and the smallest detectable one."""

    difference: float
    low: float
    high: float
    p: float
    detectable: float


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of `n` pairs with its interval and two-sided p-value."""

    value: float
    low: float
    high: float
    p: float
    n: int


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that k of `num_samples` drawn without replacement hold a correct one: 1 - C(n-c, k) / C(n, k).

    The unbiased estimator of Chen et al. 2021 (arXiv:2107.03374, eq. 1), in exact integers and rounded once.
    Raises ValueError unless 1 <= k <= num_samples and 0 <= num_correct <= num_samples.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass_at_k: k={k} is not in 1..num_samples={num_samples}; draw more samples or lower k")
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"pass_at_k: num_correct={num_correct} is not in 0..num_samples={num_samples}")
    subsets = math.comb(num_samples, k)
    return (subsets - math.comb(num_samples - num_correct, k)) / subsets


def bootstrap(
    values: np.ndarray | Sequence,
    *,
    seed: int,
    resamples: int,
    confidence: float = 0.95,
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
    proportion: bool = False,
) -> Estimate:
    """Percentile bootstrap over problems.

    values: (problems, ...) float. Whole rows are resampled, so the samples of one problem stay together.
    statistic: maps (resamples, problems, ...) to (resamples,); the mean over everything by default.
    proportion: values lie in [0, 1]; the interval is then that of `share`, and nothing is resampled.
    Raises ValueError for no problems, non-finite values, resamples < 1 or a confidence outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    check_resampled(values, resamples, confidence)
    n = values.shape[0]
    means = values.reshape(n, -1).mean(axis=1)
    if proportion:
        return share(means, confidence=confidence)
    alpha = 1.0 - confidence
    if statistic is None:
        estimates = resampled(lambda places: means[places].mean(axis=1), n, seed, resamples)
        value = float(means.mean())
    else:
        estimates = resampled(lambda places: statistic(values[places]), n, seed, resamples)
        value = float(statistic(values[None])[0])
    low, high = np.quantile(estimates, [alpha / 2, 1.0 - alpha / 2])
    return Estimate(value, float(low), float(high), n)


def share(
    values: np.ndarray | Sequence, *, weights: np.ndarray | Sequence | None = None, confidence: float = 0.95
) -> Estimate:
    """Mean of values in [0, 1], one a problem, with Wilson's interval at the effective number of observations.

    values: (problems,), such as whether the answer is right, the share of right samples, or pass@k. weights:
    (problems,) >= 0; the mean is sum(w v) / sum(w). Of zeros and ones it is Wilson's interval as it stands, and the
    exact binomial (Clopper-Pearson) bound where all are 0 or all 1. Else the effective number is what a binomial of
    this mean would need for the variance found, shrunk for its estimation by Student's t (Korn and Graubard 1998; Dean
    and Pagano 2015), and no less than the problems themselves. Raises ValueError for no problems, values outside [0, 1]
    and weights without a positive one.
    """
    from scipy.stats import t
    from statsmodels.stats.proportion import proportion_confint

    values = np.asarray(values, dtype=np.float64)
    check_resampled(values, 1, confidence)
    if values.ndim != 1 or values.min() < 0 or values.max() > 1:
        raise ValueError("share: values are one a problem and lie in [0, 1]")
    weights = _weights(weights, len(values))
    n, alpha = len(values), 1.0 - confidence
    value = float(values.mean() if (weights == 1).all() else values @ weights / n)
    own = n**2 / float(weights @ weights)  # Kish: equals n for equal weights
    if values.min() == values.max() and value in (0.0, 1.0):
        slack = 1.0 - (alpha / 2) ** (1.0 / own)
        return Estimate(value, max(0.0, value - slack), min(1.0, value + slack), n)
    if np.isin(values, (0.0, 1.0)).all() and (weights == 1).all():
        effective = own
    else:
        spread = float(weights**2 @ (values - value) ** 2) / n**2 * n / max(1, n - 1)
        effective = own if spread == 0 else max(own, value * (1 - value) / spread)
        if n > 1:
            effective *= (NormalDist().inv_cdf(1 - alpha / 2) / float(t.ppf(1 - alpha / 2, n - 1))) ** 2
    interval: Any = proportion_confint(value * effective, effective, alpha=alpha, method="wilson")
    return Estimate(value, float(interval[0]), float(interval[1]), n)


def same_problems(correct: Sequence[Sequence[bool]], *, confidence: float = 0.95) -> Estimate:
    """Mean share of right samples, with the interval over samples alone: of drawing again for the same problems.

    correct: of each problem its samples, two at least. What is left of the interval over problems where these problems
    are all that matters. Each problem's share is smoothed by half a right and half a wrong sample in its variance, so
    that four equal samples are not certainty. Raises ValueError for no problems or one with fewer than two samples.
    """
    if not len(correct) or min(map(len, correct)) < 2:
        raise ValueError("same_problems: every problem needs two samples; there is nothing to tell their spread from")
    value, variance = 0.0, 0.0
    for samples in correct:
        m, right = len(samples), sum(map(bool, samples))
        value += right / m / len(correct)
        smooth = (right + 0.5) / (m + 1)
        variance += smooth * (1 - smooth) / m / len(correct) ** 2
    half = NormalDist().inv_cdf((1 + confidence) / 2) * variance**0.5
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), len(correct))


def paired(
    a: np.ndarray | Sequence,
    b: np.ndarray | Sequence,
    *,
    seed: int = 0,
    weights: np.ndarray | Sequence | None = None,
    flips: int = FLIPS,
    confidence: float = 0.95,
) -> Paired:
    """Whether two models differ on the same problems: mean(b) - mean(a).

    a, b: (problems,) scores, such as the share of right samples, the same problems in the same order. weights:
    (problems,) >= 0 of both means, such as `class_weights`.

    p: of the sign-flip permutation test, exact up to `EXACT_DIFFERENCES` problems on which the models differ, by `seed`
    from `flips` draws above. low, high: Student's t over problems; scores within [0, 1] get Agresti and Min's pairs
    (2005) as well, half a pair for each of the four outcomes, shrunk to the scores' own step (a quarter for four
    samples): problems that tie are not certainty. Where the test does not reject, the interval reaches zero.
    detectable: the smallest absolute difference that a two-sided test at 5% finds with 80% power on so many problems,
    by the normal approximation from the same deviation; no less than one step on each of `FEWEST_DIFFERENCES` problems,
    and infinite for fewer problems. Raises ValueError for unequal shapes, no problems or values that are not finite.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"paired: shapes {a.shape} and {b.shape} are not the same one-dimensional shape")
    differences = b - a
    check_resampled(differences, flips, confidence)
    weights = _weights(weights, len(a))
    n = len(a)
    difference = float(differences @ weights / n)
    p = _sign_flip(differences * weights, seed, flips)
    step = _step(a, b)
    if n == 1:
        bound = 1.0 if step else math.inf
        return Paired(difference, -bound, bound, p, math.inf)
    deviation = _deviation(differences, weights, step)
    low, high = _around(difference, float(differences @ weights) / (n + 2 * step), deviation, n, confidence)
    if step:
        low, high = max(-1.0, low), min(1.0, high)
    if p > 1 - confidence:
        low, high = min(low, 0.0), max(high, 0.0)
    power = sum(map(NormalDist().inv_cdf, (0.975, 0.8)))
    detectable = max(power * deviation, FEWEST_DIFFERENCES * step / n) if n >= FEWEST_DIFFERENCES else math.inf
    return Paired(difference, low, high, p, detectable)


def _step(a: np.ndarray, b: np.ndarray) -> float:
    """The least change of a score within [0, 1], as far as the scores tell; 0 where they are not all within."""
    scores = np.unique(np.concatenate([a, b, [0.0, 1.0]]))
    if scores[0] < 0 or scores[-1] > 1:
        return 0.0
    gaps = np.diff(scores)
    return float(gaps[gaps > 1e-9].min())


def _deviation(differences: np.ndarray, weights: np.ndarray, step: float) -> float:
    """Standard error of the weighted mean with 2 * `step` pairs more: one that ties, two halves that are 1 apart."""
    n = len(differences)
    total = n + 2 * step
    mean = float(differences @ weights) / total
    squares = float(weights**2 @ (differences - mean) ** 2) + step * mean**2 + step * (1 + mean**2)
    return (squares * n / (n - 1)) ** 0.5 / total


def _around(value: float, center: float, deviation: float, n: int, confidence: float) -> tuple[float, float]:
    """Student's interval about `center`, widened to hold `value`."""
    from scipy.stats import t

    half = float(t.ppf((1 + confidence) / 2, n - 1)) * deviation
    return min(value, center - half), max(value, center + half)


def _sign_flip(differences: np.ndarray, seed: int, flips: int) -> float:
    """Two-sided p-value of differences whose signs are arbitrary if the models are alike."""
    differing = np.abs(differences[differences != 0])
    # The slack keeps exact ties from being lost to rounding.
    observed = abs(float(differences.sum())) - 1e-12 * float(differing.sum())
    if len(differing) <= EXACT_DIFFERENCES:
        # All sums at once; scipy's permutation_test gives the same number, but walks through a million in Python.
        sums = np.zeros(1)
        for one in differing:
            sums = np.concatenate([sums + one, sums - one])
        return float(np.mean(np.abs(sums) >= observed))
    rng = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, flips, FLIPS_PER_CHUNK):
        count = min(FLIPS_PER_CHUNK, flips - start)
        bits = np.unpackbits(rng.integers(0, 256, (count, -(-len(differing) // 8)), dtype=np.uint8), axis=1)
        sums = 2.0 * (bits[:, : len(differing)] @ differing) - differing.sum()
        extreme += int(np.count_nonzero(np.abs(sums) >= observed))
    return (extreme + 1) / (flips + 1)


def over_seeds(differences: np.ndarray | Sequence, *, confidence: float = 0.95) -> Estimate:
    """Mean difference of models trained with several seeds, with an interval over problems and seeds.

    differences: (seeds, problems), two of each at least: b - a of the models of one seed on one problem. Errors may be
    alike within a seed and within a problem: the variance is robust to both kinds of cluster (Cameron, Gelbach and
    Miller 2011, eq. 2.7; where the difference of terms is smaller than one of them, that one), with Student's t of as
    many degrees as there are of the fewer, less one. n is the number of seeds. Raises ValueError for fewer.
    """
    from scipy.stats import t
    from statsmodels.regression.linear_model import OLS
    from statsmodels.stats.sandwich_covariance import cov_cluster_2groups

    differences = np.asarray(differences, dtype=np.float64)
    check_resampled(differences, 1, confidence)
    if differences.ndim != 2 or min(differences.shape) < 2:
        raise ValueError(f"over_seeds: shape {differences.shape}; two seeds and two problems are needed")
    seeds, problems = differences.shape
    fitted = OLS(differences.reshape(-1), np.ones(differences.size)).fit()
    of_seed, of_problem = np.divmod(np.arange(differences.size), problems)
    variance = max(float(found[0, 0]) for found in cov_cluster_2groups(fitted, of_seed, of_problem))
    half = float(t.ppf((1 + confidence) / 2, min(seeds, problems) - 1)) * variance**0.5
    value = float(differences.mean())
    return Estimate(value, value - half, value + half, seeds)


def spearman(
    x: np.ndarray | Sequence, y: np.ndarray | Sequence, *, seed: int = 0, confidence: float = 0.95
) -> Correlation:
    """Spearman's rank correlation, such as of a figure after SFT with what RL adds, a pair for each model.

    x, y: (n,). The interval is Fisher's with Bonett and Wright's variance (2000), (1 + r^2 / 2) / (n - 3), and all of
    [-1, 1] below four pairs; the p-value is of the permutation test, exact up to eight pairs, by `seed` from
    `PAIRINGS` draws above. Raises ValueError for unequal lengths, fewer than two pairs, values that are not finite, and
    where all of one side are equal: they have no order.
    """
    from scipy.stats import permutation_test, rankdata

    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
        raise ValueError(f"spearman: shapes {x.shape} and {y.shape} are not the same of at least two pairs")
    if not np.isfinite(x).all() or not np.isfinite(y).all():
        raise ValueError("spearman: a value is not finite")
    if x.min() == x.max() or y.min() == y.max():
        raise ValueError("spearman: all values of one side are equal; they have no order")
    n = len(x)
    ranks = [rankdata(side) - (n + 1) / 2 for side in (x, y)]
    scale = float(np.linalg.norm(ranks[0]) * np.linalg.norm(ranks[1]))
    tested = permutation_test(
        (ranks[0],),
        lambda first, axis: (first @ ranks[1]) / scale,
        permutation_type="pairings",
        n_resamples=PAIRINGS - 1,
        vectorized=True,
        batch=RESAMPLES_PER_CHUNK * 16,
        rng=np.random.default_rng(seed),
    )
    value = float(np.clip(ranks[0] @ ranks[1] / scale, -1.0, 1.0))
    low, high = -1.0, 1.0
    if n > 3:
        half = NormalDist().inv_cdf((1 + confidence) / 2) * ((1 + value**2 / 2) / (n - 3)) ** 0.5
        middle = math.atanh(min(max(value, -1 + 1e-12), 1 - 1e-12))
        low, high = math.tanh(middle - half), math.tanh(middle + half)
    return Correlation(value, min(low, value), max(high, value), min(1.0, float(tested.pvalue)), n)


def class_weights(classes: Sequence[Hashable]) -> np.ndarray:
    """(problems,) weights under which a mean over problems is the mean over the classes of the mean in each."""
    counts = Counter(classes)
    return np.array([len(classes) / (len(counts) * counts[label]) for label in classes])


def ratio_of_sums(rows: np.ndarray) -> np.ndarray:
    """Sum of the first over the sum of the second of each problem's two values: a mean over parts of problems.

    rows: (resamples, problems, 2). Returns (resamples,). A statistic for `bootstrap`.
    """
    return rows[..., 0].sum(axis=1) / rows[..., 1].sum(axis=1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: reject those <= alpha and the family-wise error stays <= alpha. Order is kept."""
    from statsmodels.stats.multitest import multipletests

    return np.asarray(multipletests(p_values, method="holm")[1]).tolist() if len(p_values) else []


def _weights(weights: np.ndarray | Sequence | None, n: int) -> np.ndarray:
    """(n,) weights with mean 1."""
    if weights is None:
        return np.ones(n)
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (n,) or not np.isfinite(weights).all() or weights.min() < 0 or weights.max() == 0:
        raise ValueError(f"weights: {n} that are finite, not negative and not all zero are needed")
    return weights * (n / weights.sum())


def check_resampled(values: np.ndarray, resamples: int, confidence: float) -> None:
    if values.size == 0:
        raise ValueError("bootstrap: there are no problems")
    if not np.isfinite(values).all():
        raise ValueError("bootstrap: a value is not finite")
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"bootstrap: resamples={resamples} must be >= 1 and confidence={confidence} in (0, 1)")


def resampled(statistic: Callable[[np.ndarray], np.ndarray], n: int, seed: int, resamples: int) -> np.ndarray:
    """(resamples,) values of a statistic of `n` problems, which maps (draws, n) places of problems to (draws,)."""
    from scipy.stats import bootstrap as resample

    if n == 1:  # scipy wants two observations; of one there is nothing to draw
        return np.repeat(statistic(np.zeros((1, 1), dtype=np.int64)), resamples)
    # Places are resampled and not values, so that rows stay whole and two sides are drawn alike.
    drawn = resample(
        (np.arange(n),),
        lambda places, axis: statistic(places),
        n_resamples=resamples,
        batch=RESAMPLES_PER_CHUNK,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return drawn.bootstrap_distribution
