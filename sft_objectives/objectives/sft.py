"""Standard supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .weighted import Weighted


@dataclass(frozen=True, kw_only=True)
class Sft(Weighted):
    """-log p_y: every token has weight 1 (PriFT Table 1, TARGET Table 4)."""

    name: ClassVar[str] = "sft"

    def token_weight(self, student, references, columns, constants):
        return student.log_p_label.detach().new_ones(len(student.labels))
