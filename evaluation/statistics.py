"""Unbiased pass@k, bootstrap intervals over problems, paired comparisons."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES_PER_CHUNK = 256


@dataclass(frozen=True)
class Estimate:
    """A metric with its interval: `value`, `low`, `high`, and `n`, the number of problems behind it."""

    value: float
    low: float
    high: float
    n: int


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
        estimates = _resampled_means(means, seed, resamples)
        value = float(means.mean())
    else:
        rng = np.random.default_rng(seed)
        estimates = np.concatenate([statistic(values[rng.integers(n, size=(size, n))]) for size in _chunks(resamples)])
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
        estimates = _resampled_means(differences, seed, resamples)
    else:
        observed = float(statistic(b[None])[0] - statistic(a[None])[0])
        rng = np.random.default_rng(seed)
        drawn = (rng.integers(len(a), size=(size, len(a))) for size in _chunks(resamples))
        estimates = np.concatenate([statistic(b[places]) - statistic(a[places]) for places in drawn])
    alpha = 1.0 - confidence
    low, high = np.quantile(estimates, [alpha / 2, 1.0 - alpha / 2])
    # The slack keeps exact ties (a lattice of equal differences) from being lost to rounding.
    extreme = int(np.count_nonzero(np.abs(estimates - observed) >= abs(observed) * (1 - 1e-12)))
    return Comparison(observed, float(low), float(high), (extreme + 1) / (resamples + 1), len(a))


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
    order = np.argsort(p_values, kind="stable")
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def _check(values: np.ndarray, resamples: int, confidence: float) -> None:
    if values.size == 0:
        raise ValueError("bootstrap: there are no problems")
    if not np.isfinite(values).all():
        raise ValueError("bootstrap: a value is not finite")
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"bootstrap: resamples={resamples} must be >= 1 and confidence={confidence} in (0, 1)")


def _chunks(total: int) -> list[int]:
    full, rest = divmod(total, RESAMPLES_PER_CHUNK)
    return [RESAMPLES_PER_CHUNK] * full + ([rest] if rest else [])


def _resampled_means(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    n = len(values)
    return np.concatenate([values[rng.integers(n, size=(size, n))].mean(axis=1) for size in _chunks(resamples)])
