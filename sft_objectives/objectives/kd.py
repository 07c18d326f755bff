"""Knowledge distillation mixed with the label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import setting
from .residuals import Truncated
from .sources import times


@dataclass(frozen=True, kw_only=True)
class Kd(Truncated):
    """weight * CE(q, p) + (1 - weight) * (-log p_y) (TARGET 7.1, Tables 4 and 6; weight is c).

    q is the teacher on its top_k cached ids, renormalised; None: all that are cached (64 in App. A).
    """

    name: ClassVar[str] = "kd"

    weight: float = setting(0.8, low=0.0, high=1.0)

    def loss(self, step):
        return times(self.weight, self.cross_entropy(step)) - times(1 - self.weight, step.student.log_p_label)
