"""Quantiles over all samples of all problems with intervals over problems, without a sort for each resample.

At 10,000 problems of 64 samples a resample has 640,000 values. Sorted once, their order tells every resample's
quantiles: a problem that was drawn twice counts each of its values twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.statistics import Estimate, check_resampled, resampled


def quantiles(
    values: np.ndarray | Sequence, shares: Sequence[float], *, seed: int, resamples: int, confidence: float = 0.95
) -> list[Estimate]:
    """Of each share in [0, 1] the quantile of all values, between two of them their line, as numpy's percentile.

    values: (problems, samples) float. The interval is the percentile bootstrap over problems: what
    `statistics.bootstrap` gives with that quantile as its statistic, to the last bit. Raises ValueError as it does.
    """
    values = np.asarray(values, dtype=np.float64)
    check_resampled(values, resamples, confidence)
    problems = len(values)
    flat = values.reshape(-1)
    order = np.argsort(flat, kind="stable")
    ordered, owner = flat[order], order // (flat.size // problems)
    places = (flat.size - 1) * np.asarray(shares, dtype=np.float64)
    below = np.floor(places).astype(np.int64)
    above = np.minimum(below + 1, flat.size - 1)
    between = places - below
    found: list[np.ndarray] = []

    def of_one(drawn: np.ndarray) -> np.ndarray:
        """(shares,) quantiles of the problems at the places `drawn`."""
        counts = np.bincount(drawn, minlength=problems)
        upto = np.cumsum(counts[owner])
        low, high = (ordered[np.searchsorted(upto, index, side="right")] for index in (below, above))
        step = high - low
        return np.where(between >= 0.5, high - step * (1 - between), low + step * between)

    def rows(drawn: np.ndarray) -> np.ndarray:
        """Resamples by their number, since a statistic is one figure and there are several."""
        first = len(found)
        found.extend(of_one(one) for one in drawn)
        return np.arange(first, len(found), dtype=np.float64)

    numbers = resampled(rows, problems, seed, resamples).astype(np.int64)
    estimates = np.array(found)[numbers]
    alpha = 1.0 - confidence
    whole = of_one(np.arange(problems))
    bounds = [np.quantile(estimates[:, one], [alpha / 2, 1.0 - alpha / 2]) for one in range(len(whole))]
    return [
        Estimate(float(value), float(low), float(high), problems)
        for value, (low, high) in zip(whole, bounds, strict=True)
    ]
