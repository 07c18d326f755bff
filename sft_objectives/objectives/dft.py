"""DFT: weight by the label's probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .weighted import TokenWeighted


@dataclass(frozen=True, kw_only=True)
class Dft(TokenWeighted):
    """-sg(p_y) log p_y (PriFT Table 1; TARGET Table 4 and eq. 14, the p-loss)."""

    name: ClassVar[str] = "dft"

    def weight(self, q, step):
        return q.log_p_label.exp()
