"""How well a predictor orders branches by what RL made of them: rank correlations and the regret of choosing by it.

The unit is a branch without its seed; its seeds are averaged. Intervals are percentile bootstraps that draw branches
and, within each, its seeds, so that they hold for other branches and other seeds of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluation.statistics import Estimate, holm, spearman

FEWEST = 8  # branches: of fewer nothing is concluded
CHUNK = 200  # resamples at a time


@dataclass(frozen=True)
class Outcome:
    """A branch: of each seed the predictor's figure before RL and the score after it, paired."""

    branch: str
    figures: tuple[float, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Association:
    """Of one predictor over `n` branches.

    spearman, kendall (tau-b): of figure and final score, positive where the figure is right in its goal's direction. p:
    of the permutation test of Spearman's, two-sided; p_holm: adjusted over all predictors. regret: final score of the
    best branch less that of the branch `chosen` by the predictor; at_random: the same of a branch drawn at random.
    """

    n: int
    spearman: Estimate
    kendall: Estimate
    p: float
    p_holm: float
    regret: Estimate
    at_random: float
    chosen: str


def outcomes_of(branch: str, seeds: Sequence[tuple[Mapping[str, float], float]]) -> dict[str, Outcome]:
    """The outcome of a branch by figure. seeds: of each its figures before RL and its score after it."""
    found = {}
    for name in dict.fromkeys(key for figures, _ in seeds for key in figures):
        pairs = [(figures[name], score) for figures, score in seeds if name in figures]
        values, scores = zip(*pairs, strict=True)
        found[name] = Outcome(branch, values, scores)
    return found


def associations(
    outcomes: Mapping[str, Sequence[Outcome]], goals: Mapping[str, str], *, seed: int = 0, resamples: int = 2000
) -> dict[str, Association]:
    """The association of every predictor that at least `FEWEST` branches have and whose figures and scores vary.

    outcomes, goals: by predictor, its branches, and "max" or "min".
    """
    found = {
        name: _one(of_branches, goals[name], seed, resamples)
        for name, of_branches in outcomes.items()
        if len(of_branches) >= FEWEST and _vary(of_branches)
    }
    adjusted = holm([one.p for one in found.values()])
    return {name: replace(one, p_holm=p) for (name, one), p in zip(found.items(), adjusted, strict=True)}


def _vary(outcomes: Sequence[Outcome]) -> bool:
    x, y = _means(outcomes)
    return bool(np.ptp(x) > 0 and np.ptp(y) > 0)


def _means(outcomes: Sequence[Outcome]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([np.mean(one.figures) for one in outcomes]), np.array([np.mean(one.scores) for one in outcomes])


def _one(outcomes: Sequence[Outcome], goal: str, seed: int, resamples: int) -> Association:
    sign = 1.0 if goal == "max" else -1.0
    x, y = _means(outcomes)
    drawn = resampled(outcomes, seed, resamples)
    ranks, taus, regret = (
        _estimate(figure, sign * x, y, sign, drawn) for figure in (rank_correlation, kendall_tau, regret_of)
    )
    p = spearman(sign * x, y, seed=seed).p
    chosen = outcomes[int(np.argmax(sign * x))].branch
    return Association(len(outcomes), ranks, taus, p, p, regret, float(y.max() - y.mean()), chosen)


def _estimate(
    figure: Callable[[np.ndarray, np.ndarray], np.ndarray],
    x: np.ndarray,
    y: np.ndarray,
    sign: float,
    drawn: tuple[np.ndarray, np.ndarray],
) -> Estimate:
    parts = range(0, len(drawn[0]), CHUNK)
    values = np.concatenate([figure(sign * drawn[0][i : i + CHUNK], drawn[1][i : i + CHUNK]) for i in parts])
    low, high = np.nanquantile(values, [0.025, 0.975])  # a resample whose figures are all equal has no order
    value = float(figure(x[None], y[None])[0])
    return Estimate(value, min(float(low), value), max(float(high), value), len(x))


def resampled(outcomes: Sequence[Outcome], seed: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """(resamples, n) means of figures and of scores: branches are drawn, and seeds within each drawn branch."""
    rng = np.random.default_rng(seed)
    n = len(outcomes)
    branches = rng.integers(0, n, (resamples, n))
    counts = np.array([len(one.figures) for one in outcomes])
    widest = int(counts.max())
    figures, scores = np.zeros((n, widest)), np.zeros((n, widest))
    for place, one in enumerate(outcomes):
        figures[place, : counts[place]], scores[place, : counts[place]] = one.figures, one.scores
    own = counts[branches][..., None]
    seeds = (rng.random((resamples, n, widest)) * own).astype(np.int64)
    counted = np.arange(widest) < own
    return tuple(
        np.where(counted, np.take_along_axis(values[branches], seeds, axis=-1), 0.0).sum(-1) / own[..., 0]
        for values in (figures, scores)
    )  # type: ignore[return-value]


def rank_correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(m,) Spearman's correlation of each row of x and y, (m, n); not a number where one side is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(side, axis=-1) - (x.shape[-1] + 1) / 2 for side in (x, y)]
    return _normed((ranks[0] * ranks[1]).sum(-1), *[(one**2).sum(-1) for one in ranks])


def kendall_tau(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(m,) Kendall's tau-b of each row of x and y, (m, n); not a number where one side is constant."""
    signs = [np.sign(side[..., :, None] - side[..., None, :]).astype(np.int8) for side in (x, y)]
    agreeing = np.einsum("mij,mij->m", *signs, dtype=np.int64)
    return _normed(agreeing, *[(one != 0).sum((-1, -2)) for one in signs])


def _normed(product: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    scale = np.sqrt(first.astype(np.float64) * second)
    return np.where(scale > 0, product / np.where(scale > 0, scale, 1.0), np.nan)


def regret_of(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(m,) largest of y less the y where x is largest (the first of several), of each row of (m, n)."""
    chosen = np.take_along_axis(y, x.argmax(-1)[..., None], axis=-1)[..., 0]
    return y.max(-1) - chosen
