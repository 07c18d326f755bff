"""Standard supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .weighted import Weighted


@dataclass(frozen=True, kw_only=True)
class Sft(Weighted):
    """-log p_y: every token has weight 1 (PriFT Table 1, TARGET Table 4)."""

    name: ClassVar[str] = "sft"

    def token_weight(self, step):
        return step.student.log_p_label.new_ones(len(step.student.labels))
