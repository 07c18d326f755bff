"""Label smoothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import Needs, Objective, setting
from .residuals import Uniform


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(Objective):
    """-[(1 - weight) log p_y + weight / V * sum_v log p_v] (TARGET Table 4; weight is lambda)."""

    name: ClassVar[str] = "label_smoothing"

    weight: float = setting(0.1, low=0.0, high=1.0)

    @property
    def needs(self) -> Needs:
        return Needs() | Uniform().needs

    def loss(self, student, references, columns, constants):
        return -(1 - self.weight) * student.log_p_label + self.weight * Uniform().cross_entropy(student, references)
