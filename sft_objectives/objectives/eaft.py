"""EAFT: weight by the entropy of the most probable tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..contract import setting
from ..needs import Needs
from .sources import SUPPORT
from .weighted import TokenWeighted


@dataclass(frozen=True, kw_only=True)
class Eaft(TokenWeighted):
    """m_t = (H / ln k)^exponent, H the entropy of the top_k = k ids, renormalised (PriFT B, LP-SFT C.1).

    exponent is alpha. divide_by: a number in place of ln k.
    """

    name: ClassVar[str] = "eaft"

    top_k: int = setting(20, low=2)
    exponent: float = setting(1.0, low=0.0)
    divide_by: float | None = setting(None, kind=float, above=0.0, nullable=True)

    @property
    def highest_weight(self) -> float:
        return max(1.0, (math.log(self.top_k) / (self.divide_by or math.log(self.top_k))) ** self.exponent)

    @property
    def needs(self) -> Needs:
        return Needs.reading(self.source, *SUPPORT, top_k=self.top_k, momentum=self.momentum)

    def weight(self, q, step):
        log_q = q.top_k(self.top_k).log_softmax(-1)
        entropy = -(log_q.exp() * log_q.masked_fill(log_q.isneginf(), 0)).sum(-1)
        return (entropy / (self.divide_by or math.log(self.top_k))).clamp(min=0) ** self.exponent
