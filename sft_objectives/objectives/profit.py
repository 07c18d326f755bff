"""ProFit: keep the tokens that the model already finds probable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import setting
from .weighted import TokenWeighted


@dataclass(frozen=True, kw_only=True)
class Profit(TokenWeighted):
    """m_t = 1[p_y >= threshold] (PriFT Table 1, TARGET Table 4; threshold is tau, 0.1 in the published code).

    threshold 0.2 is TALR's hard clip (TALR 4.3).
    """

    name: ClassVar[str] = "profit"

    threshold: float = setting(0.1, low=0.0, high=1.0)

    def weight(self, q, step):
        return q.log_p_label.exp() >= self.threshold
