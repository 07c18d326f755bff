"""Critical-token fine-tuning: train on the tokens whose replacement breaks the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..needs import Needs
from .weighted import Weighted


@dataclass(frozen=True, kw_only=True)
class CriticalToken(Weighted):
    """-c_t log p_y, c_t = 1 on counterfactually critical tokens (CFT; TARGET Table 4), from the column "critical"."""

    name: ClassVar[str] = "critical_token"

    @property
    def needs(self) -> Needs:
        return Needs(columns=frozenset({"critical"}))

    def token_weight(self, step):
        return step.column("critical").to(step.student.log_p_label.dtype)
