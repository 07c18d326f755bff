"""Importance-weighted SFT: weight trajectories by a ratio of probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..contract import BatchConstants, setting
from ..needs import FROZEN_SOURCES, MOMENTUM, SOURCES, BatchNeeds, Needs
from .batch import of_sequence, sequence_means
from .sources import log_ratio, statistics_of
from .weighted import Weighted

MAX_LOG_WEIGHT = 70.0
"""A weighted loss of exp(70) still fits float32."""


@dataclass(frozen=True, kw_only=True)
class IwSft(Weighted):
    """-w log p_y with w = numerator(trajectory) / q(trajectory), detached (TARGET Tables 4 and 5).

    q is `source`, the auxiliary distribution is `numerator`; a trajectory's probability is the product over its
    supervised tokens. variant repo: w = min(exp(mean_t(log p_y - log q_y)), 16), as the published trainer calls it (its
    function's default, which nobody uses, doubles the mean); variant repo_token: per token clamp(p_y / q_y, 0.2, 1.8),
    the published code's other branch. log w is at most 70, since float32 ends near exp(88).
    """

    name: ClassVar[str] = "iw_sft"

    source: str = setting("base", choices=FROZEN_SOURCES)
    numerator: str = setting("online", choices=SOURCES)
    momentum: float = setting(MOMENTUM, low=0.0, high=1.0)
    variant: str = setting("paper", choices=("paper", "repo", "repo_token"))

    @property
    def highest_weight(self) -> float:
        return {"paper": math.exp(MAX_LOG_WEIGHT), "repo": 16.0, "repo_token": 1.8}[self.variant]

    @property
    def needs(self) -> Needs:
        q, numerator = (
            Needs.reading(source, "label_logprob", momentum=self.momentum) for source in (self.source, self.numerator)
        )
        if self.variant == "repo_token":
            return q | numerator
        return q | numerator | Needs(batch=BatchNeeds(student=self.numerator == "online", sequences=True))

    def token_scalars(self, step):
        return {"log_ratio": self._log_ratio(step)}

    def batch_constants(self, token_scalars, reduce):
        mask, sequence = token_scalars["mask"].bool(), token_scalars["sequence"]
        everywhere = reduce(sequence[mask])
        ids, log_w = sequence_means(reduce(token_scalars["log_ratio"][mask]), everywhere)
        if self.variant == "paper":
            log_w = (log_w * everywhere.unique(return_counts=True)[1]).clamp(max=MAX_LOG_WEIGHT)
        else:
            log_w = log_w.clamp(max=math.log(16))
        return BatchConstants(tokens={"weight": of_sequence(ids, log_w.exp(), sequence)})

    def token_weight(self, step):
        if self.variant == "repo_token":
            weight = self._log_ratio(step).clamp(math.log(0.2), math.log(1.8)).exp()
        else:
            weight = step.constant("weight")
        return weight.to(step.student.log_p_label.dtype)

    def _log_ratio(self, step):
        return log_ratio(statistics_of(step, self.numerator).log_p_label, statistics_of(step, self.source).log_p_label)
