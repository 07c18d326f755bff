"""Label smoothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import Objective, setting


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(Objective):
    """-[(1 - weight) log p_y + weight / V * sum_v log p_v] (TARGET Table 4; weight is lambda)."""

    name: ClassVar[str] = "label_smoothing"

    weight: float = setting(0.1, low=0.0, high=1.0)

    def loss(self, step):
        return -(1 - self.weight) * step.student.log_p_label + self.weight * -step.student.mean_log_p
