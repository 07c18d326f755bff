"""Unbiased pass@k, bootstrap intervals over problems, paired comparisons."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES_PER_CHUNK = 256
EXACT_DIFFERENCES = 20  # a million sign patterns
FLIPS = 100_000
FLIPS_PER_CHUNK = 1_000


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
class Comparison:
    """Paired difference b - a over the same `n` problems, with its interval and two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float
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
    proportion: values lie in [0, 1]. If all of them are 0, or all 1, resampling sees no variation and the exact
    binomial (Clopper-Pearson) bound is given instead of an interval of width zero.
    Raises ValueError for no problems, non-finite values, resamples < 1 or a confidence outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    _check(values, resamples, confidence)
    n = values.shape[0]
    alpha = 1.0 - confidence
    if proportion and values.min() == values.max() and values.flat[0] in (0.0, 1.0):
        value = float(values.flat[0])
        slack = 1.0 - (alpha / 2) ** (1.0 / n)
        return Estimate(value, max(0.0, value - slack), min(1.0, value + slack), n)
    if statistic is None:
        means = values.reshape(n, -1).mean(axis=1)
        estimates = _resampled(lambda places: means[places].mean(axis=1), n, seed, resamples)
        value = float(means.mean())
    else:
        estimates = _resampled(lambda places: statistic(values[places]), n, seed, resamples)
        value = float(statistic(values[None])[0])
    low, high = np.quantile(estimates, [alpha / 2, 1.0 - alpha / 2])
    return Estimate(value, float(low), float(high), n)


def paired_comparison(
    a: np.ndarray | Sequence,
    b: np.ndarray | Sequence,
    *,
    seed: int,
    resamples: int,
    confidence: float = 0.95,
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Comparison:
    """Paired bootstrap of mean(b) - mean(a), or of another statistic's difference.

    a, b: (problems,) float, with a statistic (problems, ...), the same problems in the same order. statistic: as for
    `bootstrap`; both sides are resampled alike. The p-value is two-sided: the share of resampled
    differences, centred at zero, at least as far from zero as the observed one, with the +1 correction of Davison and
    Hinkley. Many comparisons in one table need `holm`. Raises ValueError for unequal shapes and as `bootstrap` does.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or (statistic is None and a.ndim != 1):
        raise ValueError(f"paired_comparison: shapes {a.shape} and {b.shape} are not the same one-dimensional shape")
    differences = b - a
    _check(differences, resamples, confidence)
    if statistic is None:
        observed = float(differences.mean())
        estimates = _resampled(lambda places: differences[places].mean(axis=1), len(a), seed, resamples)
    else:
        observed = float(statistic(b[None])[0] - statistic(a[None])[0])
        estimates = _resampled(lambda at: statistic(b[at]) - statistic(a[at]), len(a), seed, resamples)
    alpha = 1.0 - confidence
    low, high = np.quantile(estimates, [alpha / 2, 1.0 - alpha / 2])
    # The slack keeps exact ties (a lattice of equal differences) from being lost to rounding.
    extreme = int(np.count_nonzero(np.abs(estimates - observed) >= abs(observed) * (1 - 1e-12)))
    return Comparison(observed, float(low), float(high), (extreme + 1) / (resamples + 1), len(a))


def paired(a: np.ndarray | Sequence, b: np.ndarray | Sequence, *, seed: int = 0, resamples: int = 10_000) -> Paired:
    """Whether two models differ on the same problems: mean(b) - mean(a).

    a, b: (problems,) scores, such as the share of right samples, the same problems in the same order. The p-value is of
    the sign-flip permutation test, exact up to `EXACT_DIFFERENCES` problems on which the models differ, by `seed` from
    `FLIPS` draws above; the interval is a 95% percentile bootstrap over problems. detectable: the smallest absolute
    difference that a two-sided test at 5% finds with 80% power on so many problems, by the normal approximation from
    the deviation of these differences (infinite for one problem). Raises ValueError for unequal shapes, no problems or
    values that are not finite.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"paired: shapes {a.shape} and {b.shape} are not the same one-dimensional shape")
    differences = b - a
    interval = bootstrap(differences, seed=seed, resamples=resamples)
    deviation = float(differences.std(ddof=1)) if len(a) > 1 else math.inf
    detectable = sum(map(NormalDist().inv_cdf, (0.975, 0.8))) * deviation / len(a) ** 0.5
    return Paired(interval.value, interval.low, interval.high, _sign_flip(differences, seed), detectable)


def _sign_flip(differences: np.ndarray, seed: int) -> float:
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
    for start in range(0, FLIPS, FLIPS_PER_CHUNK):
        signs = rng.choice((-1.0, 1.0), size=(min(FLIPS_PER_CHUNK, FLIPS - start), len(differing)))
        extreme += int(np.count_nonzero(np.abs(signs @ differing) >= observed))
    return (extreme + 1) / (FLIPS + 1)


def balanced_accuracy(rows: np.ndarray, classes: int) -> np.ndarray:
    """Mean over the classes of the mean score in a class; a class without a problem in a resample is left out.

    rows: (resamples, problems, 2), each the score of a problem in [0, 1] and the number of its class in 0..classes-1.
    Returns (resamples,). A statistic for `bootstrap`.
    """
    scores, labels = rows[..., 0], rows[..., 1]
    recalls = []
    for label in range(classes):
        members = labels == label
        count = members.sum(axis=1)
        recalls.append(np.where(count > 0, (scores * members).sum(axis=1) / np.maximum(count, 1), np.nan))
    return np.nanmean(np.stack(recalls, axis=1), axis=1)


def ratio_of_sums(rows: np.ndarray) -> np.ndarray:
    """Sum of the first over the sum of the second of each problem's two values: a mean over parts of problems.

    rows: (resamples, problems, 2). Returns (resamples,). A statistic for `bootstrap`.
    """
    return rows[..., 0].sum(axis=1) / rows[..., 1].sum(axis=1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: reject those <= alpha and the family-wise error stays <= alpha. Order is kept."""
    from statsmodels.stats.multitest import multipletests

    return np.asarray(multipletests(p_values, method="holm")[1]).tolist() if len(p_values) else []


def _check(values: np.ndarray, resamples: int, confidence: float) -> None:
    if values.size == 0:
        raise ValueError("bootstrap: there are no problems")
    if not np.isfinite(values).all():
        raise ValueError("bootstrap: a value is not finite")
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"bootstrap: resamples={resamples} must be >= 1 and confidence={confidence} in (0, 1)")


def _resampled(statistic: Callable[[np.ndarray], np.ndarray], n: int, seed: int, resamples: int) -> np.ndarray:
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
