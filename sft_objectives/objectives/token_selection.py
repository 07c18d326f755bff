"""Token selection: train on a fraction of the batch's tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..contract import BatchConstants, setting
from ..needs import BatchNeeds, Needs
from .sources import statistics_of
from .weighted import TokenWeighted


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
        field = "label_logprob" if self.statistic == "prob" else "entropy"
        reference = Needs.reading(self.source, field, momentum=self.momentum)
        return reference | Needs(batch=BatchNeeds(student=self.source == "online"))

    def token_scalars(self, step):
        q = statistics_of(step, self.source)
        return {"score": q.log_p_label if self.statistic == "prob" else q.entropy}

    def batch_constants(self, token_scalars, reduce):
        mask = token_scalars["mask"].bool()
        score = token_scalars["score"] * (1 if self.order == "top" else -1)
        ranked = reduce(score[mask]).sort(descending=True).values
        # rounded first: 0.3 * 10 is 3.0000000000000004
        count = math.ceil(round(self.fraction * len(ranked), 6))
        selected = mask & (score >= ranked[count - 1]) if count else mask
        kept = float((ranked >= ranked[count - 1]).sum()) if count else 0.0
        return BatchConstants(tokens={"selected": selected}, normalizer=kept if self.normalizer == "kept" else None)

    def weight(self, q, step):
        return step.constant("selected")
