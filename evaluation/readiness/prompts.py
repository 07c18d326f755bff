"""Predictors from one sampling of the RL prompts: what GRPO can learn from, and what was gained and lost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.readiness.contract import Evidence, Predictor
from evaluation.statistics import Estimate, bootstrap, share


@dataclass(frozen=True)
class PassRate(Predictor):
    """Mean share of right answers."""

    def figures(self, evidence: Evidence) -> dict[str, Estimate]:
        """See `Predictor.figures`."""
        return {self.name: share([float(one.mean()) for one in evidence.correct.values()])}


@dataclass(frozen=True)
class Learnable(Predictor):
    """Share of prompts whose answers are neither all right nor all wrong: the others have no advantage."""

    def figures(self, evidence: Evidence) -> dict[str, Estimate]:
        """See `Predictor.figures`."""
        return {self.name: share([float(0 < one.mean() < 1) for one in evidence.correct.values()])}


@dataclass(frozen=True)
class GroupVariance(Predictor):
    """Mean over prompts of the unbiased variance (n - 1) of a group's rewards."""

    def figures(self, evidence: Evidence) -> dict[str, Estimate]:
        """See `Predictor.figures`."""
        values = np.array([float(np.var(one, ddof=1)) for one in evidence.scores.values() if len(one) > 1])
        if not len(values):
            return {}
        return {self.name: bootstrap(values, seed=evidence.seed, resamples=evidence.resamples)}


@dataclass(frozen=True)
class Coverage(Predictor):
    """Share of prompts that one of model and base solves in some sample and the other in none, paired by prompt."""

    gained: bool = True

    def figures(self, evidence: Evidence) -> dict[str, Estimate]:
        """See `Predictor.figures`. Raises ValueError where the two models were not asked the same prompts."""
        if evidence.base is None:
            return {}
        if evidence.base.keys() != evidence.correct.keys():
            raise ValueError(f"{self.name}: the model and the base answered other prompts; sample both alike")
        pairs = [(bool(one.any()), bool(evidence.base[prompt].any())) for prompt, one in evidence.correct.items()]
        return {self.name: share([float(ours != theirs and ours == self.gained) for ours, theirs in pairs])}


PASS_RATE = PassRate("prompt_pass_rate", "pass rate on the RL prompts", "max")
LEARNABLE = Learnable("learnable", "share of RL prompts solved sometimes", "max")
GROUP_VARIANCE = GroupVariance("group_variance", "variance of a group's rewards", "max")
GAINED = Coverage("coverage_gained", "RL prompts that the base never solved", "max", gained=True)
LOST = Coverage("coverage_lost", "RL prompts that the base alone solved", "min", gained=False)
