"""LP-SFT's printed plateaus (Tables 3 to 13) and the lower envelope of R (eq. 11)."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize

from common.distributions import WINDOW, window_support

# printed probabilities, N1, R
PLATEAUS = {
    2: ([0.5] * 2 + [0.0] * 8, 2.000, 1.0000),
    3: ([0.333] * 3 + [0.0] * 7, 3.000, 0.9999),
    4: ([0.25] * 4 + [0.0] * 6, 4.029, 0.9945),
    5: ([0.198] * 5 + [0.003] + [0.001] * 4, 5.277, 0.9647),
    6: ([0.167] * 6 + [0.0] * 4, 6.021, 0.9972),
    7: ([0.167] * 3 + [0.131] * 3 + [0.102, 0.003, 0.001, 0.0], 7.073, 0.9722),
    8: ([0.159] + [0.125] * 4 + [0.11] * 3 + [0.011, 0.0], 8.285, 0.9733),
    9: ([0.111] * 9 + [0.0], 9.033, 0.9974),
    10: ([0.1] * 10, 10.001, 0.9999),
    12: ([0.092] * 2 + [0.082] * 10 + [0.0] * 8, 11.998, 0.9981),
    15: ([0.07] * 9 + [0.062] * 5 + [0.055] + [0.0] * 5, 14.966, 0.9969),
}


def n1_and_r(p: np.ndarray) -> tuple[float, float]:
    p = p / p.sum()
    n1 = math.exp(-float(sum(x * math.log(x) for x in p if x > 0)))
    return n1, 1 / float((p * p).sum()) / n1


@pytest.mark.parametrize("k", PLATEAUS)
def test_a_printed_plateau_lies_in_the_box_of_rounding_and_a_hidden_tail(k):
    printed, n1, r = PLATEAUS[k]
    direct = n1_and_r(np.array(printed))
    assert abs(direct[0] - n1) < 0.3 and abs(direct[1] - r) < 0.03  # the box is needed, and not large
    hidden = WINDOW - len(printed)
    low = [max(x - 0.0005, 0.0) for x in printed] + [0.0] * hidden
    high = [x + 0.0005 for x in printed] + [printed[-1] + 0.0005] * hidden

    def miss(p):
        found = n1_and_r(p)
        return (found[0] / n1 - 1) ** 2 + (found[1] / r - 1) ** 2

    def roundings(p):
        found = n1_and_r(np.clip(p, low, high))
        return max(abs(found[0] - n1) / 0.0005, abs(found[1] - r) / 0.00005)

    tail = np.array([float(x == 0.0) / (WINDOW - np.count_nonzero(printed)) for x in [*printed, *[0.0] * hidden]])
    even = np.minimum(np.array([*printed, *[0.0] * hidden]) / max(sum(printed), 1.0), high)
    starts = [np.array(low) + (np.array(high) - np.array(low)) * share for share in (0.0, 0.2, 0.5)]
    starts += [np.clip(even * (1 - mass) + tail * mass, low, high) for mass in (1e-6, 1e-5, 1e-4, 1e-3)]
    within = {"type": "ineq", "fun": lambda p: 1 - p.sum()}  # the words outside the window hold the rest
    tries = [
        minimize(miss, start, bounds=list(zip(low, high, strict=True)), constraints=within, options={"ftol": 1e-15})
        for start in starts
    ]
    p = np.clip(min([*starts, *(found.x for found in tries)], key=roundings), low, high)
    assert p.sum() <= 1 + 1e-9
    found_n1, found_n2 = window_support(torch.from_numpy(np.log(np.maximum(p, 1e-300)))[None])
    assert abs(float(found_n1) - n1) <= 0.00051
    assert abs(float(found_n2 / found_n1) - r) <= 0.000051


def envelope(n1: float, m: int) -> float:
    """The value under the minimum of eq. 11: one word of probability q, m - 1 equal ones, entropy ln N1."""

    def excess(q):
        rest = (1 - q) / (m - 1)
        return -q * math.log(q) - ((1 - q) * math.log(rest) if rest > 0 else 0) - math.log(n1)

    q = brentq(excess, 1 / m, 1 - 1e-15, xtol=1e-15)
    return 1 / (n1 * (q**2 + (1 - q) ** 2 / (m - 1)))


def test_the_minimum_over_m_is_at_the_whole_window():
    for n1 in (1.5, 3.0, 9.46, 15.0, 25.0):
        values = {m: envelope(n1, m) for m in range(math.ceil(n1 + 0.01), WINDOW + 1)}
        assert min(values, key=lambda m: values[m]) == WINDOW
    assert abs(envelope(9.46, WINDOW) - 0.3566) < 5e-5
    assert min(envelope(n1, WINDOW) for n1 in np.linspace(1.01, 29.9, 300)) > 0.35655


def test_random_distributions_of_thirty_words_stay_above_the_envelope():
    """Near the envelope: one large word and others of random spread, from equal to steep; and Dirichlet draws."""
    rng = np.random.default_rng(0)
    for draw in range(400):
        if draw % 2:
            top = rng.uniform(1 / WINDOW, 1)
            rest = np.exp(rng.normal(size=WINDOW - 1) * rng.choice([0.0, 1e-3, 0.1, 2.0]))
            p = np.array([top, *(rest / rest.sum() * (1 - top))])
        else:
            p = rng.dirichlet(np.full(WINDOW, 10.0 ** rng.uniform(-2, 1)))
        n1, n2 = (float(x) for x in window_support(torch.from_numpy(np.log(np.maximum(p, 1e-300)))[None]))
        if 1.001 < n1 < WINDOW - 1e-3:
            assert n2 / n1 >= envelope(n1, WINDOW) - 1e-8
