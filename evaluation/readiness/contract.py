"""What a predictor of readiness is, and the evidence that it reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evaluation.statistics import Estimate


@dataclass(frozen=True)
class Evidence:
    """What was measured of a model before RL.

    target, held_out: metrics with intervals ({"value", "low", "high", "n"}) by name, as `measure` writes them; empty
    where nothing was measured. scores, correct: of each RL prompt (its row) those of its answers, (samples,) float and
    bool. base: `correct` of the base model; None for the base itself. seed, resamples: of the bootstrap.
    """

    target: Mapping[str, Mapping[str, Any]]
    held_out: Mapping[str, Mapping[str, Any]]
    scores: Mapping[int, np.ndarray]
    correct: Mapping[int, np.ndarray]
    base: Mapping[int, np.ndarray] | None = None
    seed: int = 0
    resamples: int = 2000


@dataclass(frozen=True)
class Predictor:
    """Base class; a file holds instances.

    name: as recipes name its figure; where it has several, with `k` for the number (pass@k). title: in tables. goal:
    "max" or "min", which value speaks for RL. version: to be raised with every change of what it computes.
    """

    name: str
    title: str
    goal: str
    version: int = field(default=1, kw_only=True)

    def has(self, figure: str) -> bool:
        """Whether a figure is this predictor's."""
        return figure == self.name or re.fullmatch(re.escape(self.name).replace("@k", r"@\d+"), figure) is not None

    def figures(self, evidence: Evidence) -> dict[str, Estimate]:
        """Its figures by name; none where the evidence for them is missing."""
        raise NotImplementedError
