"""Token selection: train on a fraction of the batch's tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from ..contract import BatchConstants, Needs, setting
from .weighted import TokenWeighted, needs_of, statistics_of


@dataclass(frozen=True, kw_only=True)
class TokenSelection(TokenWeighted):
    """m_t = 1 for the ceil(fraction * n) supervised tokens of the global batch with the highest (order top) or lowest
    (bottom) p_y (statistic prob) or entropy (PriFT Table 2); tokens tied with the last one are kept too.

    normalizer kept: divide by the number of tokens kept instead of all supervised ones.
    """

    name: ClassVar[str] = "token_selection"

    fraction: float = setting(0.5, above=0.0, high=1.0)
    statistic: str = setting("prob", choices=("prob", "entropy"))
    order: str = setting("top", choices=("top", "bottom"))
    normalizer: str = setting("supervised", choices=("supervised", "kept"))

    @property
    def needs(self) -> Needs:
        reads = frozenset({"log_p_label" if self.statistic == "prob" else "entropy"})
        first_pass = needs_of(self.source, self.momentum, reads)
        # the second pass reads the selection, not the statistic
        return replace(Needs() | replace(first_pass, student=frozenset()), batch=True, batch_student=first_pass.student)

    def token_scalars(self, student, references, columns):
        statistics = statistics_of(self.source, student, references)
        return {self.statistic: statistics.log_p_label if self.statistic == "prob" else statistics.entropy}

    def batch_constants(self, token_scalars, reduce):
        mask = token_scalars["mask"].bool()
        score = token_scalars[self.statistic] * (1 if self.order == "top" else -1)
        ranked = reduce(score[mask]).sort(descending=True).values
        # rounded first: 0.3 * 10 is 3.0000000000000004
        count = math.ceil(round(self.fraction * len(ranked), 6))
        selected = mask & (score >= ranked[count - 1]) if count else mask
        kept = float((ranked >= ranked[count - 1]).sum()) if count else 0.0
        return BatchConstants(tokens={"selected": selected}, normalizer=kept if self.normalizer == "kept" else None)

    def weight(self, statistics, constants):
        return constants.token("selected")
