"""Knowledge distillation mixed with the label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import FROZEN_SOURCES, Needs, Objective, setting
from .residuals import Truncated
from .weighted import MOMENTUM


@dataclass(frozen=True, kw_only=True)
class Kd(Objective):
    """weight * CE(q, p) + (1 - weight) * (-log p_y) (TARGET 7.1, Tables 4 and 6; weight is c).

    q is the teacher on its top_k cached words, renormalised; None: all that are cached (64 in App. A).
    """

    name: ClassVar[str] = "kd"

    source: str = setting("teacher", choices=FROZEN_SOURCES)
    momentum: float = setting(MOMENTUM, low=0.0, high=1.0)
    weight: float = setting(0.8, low=0.0, high=1.0)
    top_k: int | None = setting(None, kind=int, low=1, nullable=True)

    @property
    def residual(self) -> Truncated:
        """The teacher's truncated distribution."""
        return Truncated(source=self.source, momentum=self.momentum, top_k=self.top_k)

    @property
    def needs(self) -> Needs:
        return Needs() | self.residual.needs

    def loss(self, student, references, columns, constants):
        return self.weight * self.residual.cross_entropy(student, references) - (1 - self.weight) * student.log_p_label
