"""Importance-weighted SFT: weight trajectories by a ratio of probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from ..contract import FROZEN_SOURCES, SOURCES, BatchConstants, Needs, setting
from .batch import of_sequence, sequence_means
from .weighted import MOMENTUM, Weighted, needs_of, statistics_of

MAX_LOG_WEIGHT = 70.0
"""A weighted loss of exp(70) still fits float32."""


@dataclass(frozen=True, kw_only=True)
class IwSft(Weighted):
    """-w log p_y with w = numerator(trajectory) / q(trajectory), detached (TARGET Tables 4 and 5).

    q is `source`, the auxiliary distribution is `numerator`; a trajectory's probability is the product over its
    supervised tokens. variant repo: w = min(exp(2 * mean_t(log p_y - log q_y)), 16); variant repo_token: per token
    clamp(p_y / q_y, 0.2, 1.8); both as in the published code. log w is at most 70, since float32 ends near exp(88).
    """

    name: ClassVar[str] = "iw_sft"

    source: str = setting("base", choices=FROZEN_SOURCES)
    numerator: str = setting("online", choices=SOURCES)
    momentum: float = setting(MOMENTUM, low=0.0, high=1.0)
    variant: str = setting("paper", choices=("paper", "repo", "repo_token"))

    @property
    def needs(self) -> Needs:
        read = frozenset({"log_p_label"})
        needs = Needs() | needs_of(self.source, self.momentum, read) | needs_of(self.numerator, self.momentum, read)
        if self.variant == "repo_token":
            return needs
        first_pass = read if self.numerator == "online" else frozenset()
        return replace(needs, batch=True, batch_student=first_pass, sequences=True)

    def token_scalars(self, student, references, columns):
        return {"log_ratio": self._log_ratio(student, references)}

    def batch_constants(self, token_scalars, reduce):
        if self.variant == "repo_token":
            return BatchConstants()
        mask, sequence = token_scalars["mask"].bool(), token_scalars["sequence"]
        everywhere = reduce(sequence[mask])
        ids, log_w = sequence_means(reduce(token_scalars["log_ratio"][mask]), everywhere)
        if self.variant == "paper":
            log_w = (log_w * everywhere.unique(return_counts=True)[1]).clamp(max=MAX_LOG_WEIGHT)
        else:
            log_w = (2 * log_w).clamp(max=math.log(16))
        return BatchConstants(tokens={"weight": of_sequence(ids, log_w.exp(), sequence)})

    def token_weight(self, student, references, columns, constants):
        if self.variant == "repo_token":
            weight = self._log_ratio(student, references).clamp(math.log(0.2), math.log(1.8)).exp()
        else:
            weight = constants.token("weight")
        return weight.to(student.log_p_label.dtype)

    def _log_ratio(self, student, references):
        numerator = statistics_of(self.numerator, student, references).log_p_label
        return numerator - statistics_of(self.source, student, references).log_p_label
