"""Differences between two arms of a study, paired by seed and, where a figure is one of problems, by problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import ConfigError
from evaluation.statistics import over_seeds, pass_at_k
from launch.evidence.runs import Run, of_arm


@dataclass(frozen=True)
class Difference:
    """Mean of `arm` less `against` over `seeds`, its 95% interval, two-sided p, and what 80% power would find."""

    value: float
    low: float
    high: float
    p: float
    detectable: float
    seeds: int


def of_problems(run: Run, figure: str) -> np.ndarray | None:
    """(problems,) float64 of a figure that is a mean over problems, pass@k; None for any other."""
    if not figure.startswith("pass@"):
        return None
    k = int(figure.removeprefix("pass@"))
    table = np.array([pass_at_k(run.samples, count, k) for count in range(run.samples + 1)])
    return table[np.array(run.right)]


def difference(runs: Sequence[Run], arm: str, against: str, phase: str, figure: str) -> Difference:
    """The difference of a figure after `phase`, over the seeds that both arms have.

    pass@k: over problems and seeds, with the variance of `evaluation.statistics.over_seeds`. Others: Student's t over
    the seeds' differences. Raises ConfigError for fewer than two common seeds, and where a run lacks the figure.
    """
    first, second = (of_arm(runs, name, phase) for name in (arm, against))
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < 2:
        raise ConfigError(f"{arm} against {against} after {phase}: {len(seeds)} common seeds; two at least are needed")
    rows = [[of_problems(side[seed], figure) for side in (first, second)] for seed in seeds]
    if rows[0][0] is None:
        return _over_scalars([_figure(first[seed], figure) - _figure(second[seed], figure) for seed in seeds])
    return _over_problems(np.stack([a - b for a, b in rows]))  # type: ignore[operator]


def _figure(run: Run, figure: str) -> float:
    if figure not in run.figures:
        raise ConfigError(f"{run.arm}, seed {run.seed}, {run.phase}: {figure} was not measured")
    return run.figures[figure]


def _over_problems(differences: np.ndarray) -> Difference:
    found = over_seeds(differences)
    freedom = min(differences.shape) - 1
    return _tested(found.value, (found.high - found.low) / 2, freedom, len(differences))


def _over_scalars(values: Sequence[float]) -> Difference:
    from scipy.stats import t

    n = len(values)
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5)
    return _tested(float(np.mean(values)), half, n - 1, n)


def _tested(value: float, half: float, freedom: int, seeds: int) -> Difference:
    from scipy.stats import t

    quantile = float(t.ppf(0.975, freedom))
    error = half / quantile
    p = float(2 * t.sf(abs(value) / error, freedom)) if error else float(value == 0)
    return Difference(value, value - half, value + half, p, (quantile + float(t.ppf(0.8, freedom))) * error, seeds)
