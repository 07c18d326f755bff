"""Quantiles from one sorted order equal those of numpy over every resample."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.quantiles import quantiles
from evaluation.statistics import bootstrap

SHARES = (0.25, 0.5, 0.75)


@pytest.mark.parametrize(("problems", "samples"), [(1, 1), (1, 5), (2, 1), (23, 3), (60, 16)])
@pytest.mark.parametrize("values", ["tied", "different"])
def test_they_are_those_of_the_bootstrap_to_the_last_bit(problems, samples, values):
    rng = np.random.default_rng(problems)
    drawn = rng.integers(1, 9, (problems, samples)) if values == "tied" else rng.normal(size=(problems, samples))
    expected = [
        bootstrap(
            drawn,
            seed=5,
            resamples=300,
            statistic=lambda rows, share=share: np.percentile(rows.reshape(len(rows), -1), 100 * share, axis=1),
        )
        for share in SHARES
    ]
    assert quantiles(drawn, SHARES, seed=5, resamples=300) == expected


def test_what_no_bootstrap_takes_is_refused():
    with pytest.raises(ValueError, match="there are no problems"):
        quantiles(np.empty((0, 3)), SHARES, seed=0, resamples=10)
    with pytest.raises(ValueError, match="not finite"):
        quantiles([[1.0, np.nan]], SHARES, seed=0, resamples=10)
