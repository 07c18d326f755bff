"""The smallest R = N2 / N1 that a distribution over K ids can have at a given N1 (LP-SFT eq. 9-11)."""

from __future__ import annotations

import numpy as np

HALVINGS = 60


def lowest_ratio(n1: np.ndarray, size: int, actives: tuple[int, ...] | None = None) -> np.ndarray:
    """R_min(N1; size), (n,) float64, of N1 (n,) in [1, size]; NaN outside.

    actives: sizes m of the active support over which eq. 11 takes the minimum; None: all of 2 to `size`.
    """
    wanted = np.asarray(n1, dtype=np.float64)
    found = np.full(wanted.shape, np.inf)
    for m in range(2, size + 1) if actives is None else actives:
        low, high = np.full(wanted.shape, 1 / m), np.ones(wanted.shape)
        for _ in range(HALVINGS):  # the entropy falls in q on [1/m, 1]
            q = (low + high) / 2
            above = _entropy(q, m) > np.log(wanted)
            low, high = np.where(above, q, low), np.where(above, high, q)
        q = (low + high) / 2
        ratio = 1 / (wanted * (q**2 + (1 - q) ** 2 / (m - 1)))
        found = np.where(wanted <= m, np.minimum(found, ratio), found)
    return np.where((wanted >= 1) & (wanted <= size), np.minimum(found, 1.0), np.nan)


def _entropy(q: np.ndarray, m: int) -> np.ndarray:
    """Shannon entropy of one id of probability q and m - 1 equal ones."""
    rest = (1 - q) / (m - 1)
    return -q * np.log(q) - np.where(rest > 0, (1 - q) * np.log(np.where(rest > 0, rest, 1)), 0)
