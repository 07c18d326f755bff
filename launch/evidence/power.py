"""How many seeds and problems a difference takes to be found, from the spread in pilot runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import ConfigError
from launch.evidence.differences import of_problems
from launch.evidence.runs import Run, of_arm

POWER, LEVEL = 0.8, 0.05


@dataclass(frozen=True)
class Spread:
    """Variance components of a paired difference d = mean + seed + problem + rest, of `pairs` pairs of arms."""

    seed: float
    problem: float
    rest: float
    pairs: int

    def detectable(self, seeds: int, problems: int) -> float:
        """The difference that a two-sided test at 5% over so many seeds finds four times in five."""
        from scipy.stats import t

        error = (self.seed / seeds + self.problem / problems + self.rest / (seeds * problems)) ** 0.5
        freedom = min(seeds, problems) - 1
        return float(t.ppf(1 - LEVEL / 2, freedom) + t.ppf(POWER, freedom)) * error

    def seeds_for(self, smallest: float, problems: int, most: int = 200) -> int | None:
        """The fewest seeds with which `smallest` is found; None where `most` do not suffice."""
        return next((seeds for seeds in range(2, most + 1) if self.detectable(seeds, problems) <= smallest), None)


def spread(runs: Sequence[Run], pairs: Sequence[tuple[str, str]], phase: str, figure: str) -> Spread:
    """The components, by the analysis of variance of seeds and problems without repetition, averaged over the pairs.

    A component that comes out negative is 0. Raises ConfigError where a pair has fewer than two common seeds.
    """
    found = []
    for arm, against in pairs:
        first, second = (of_arm(runs, name, phase) for name in (arm, against))
        seeds = sorted(first.keys() & second.keys())
        rows = [[of_problems(side[seed], figure) for side in (first, second)] for seed in seeds]
        if len(seeds) < 2 or rows[0][0] is None:
            raise ConfigError(
                f"{arm} against {against} after {phase}: {figure} of two seeds is needed, there are {len(seeds)}"
            )
        found.append(components(np.stack([a - b for a, b in rows])))  # type: ignore[operator]
    seed, problem, rest = np.mean(found, axis=0)
    return Spread(float(seed), float(problem), float(rest), len(found))


def components(differences: np.ndarray) -> tuple[float, float, float]:
    """Variances of seeds, problems and the rest of (seeds, problems) differences; two of each at least."""
    seeds, problems = differences.shape
    by_seed, by_problem = differences.mean(1, keepdims=True), differences.mean(0, keepdims=True)
    rest = differences - by_seed - by_problem + differences.mean()
    mean_square = float((rest**2).sum() / ((seeds - 1) * (problems - 1)))
    of_seed = float(by_seed.var(ddof=1)) - mean_square / problems
    of_problem = float(by_problem.var(ddof=1)) - mean_square / seeds
    return max(0.0, of_seed), max(0.0, of_problem), mean_square
