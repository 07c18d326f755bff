"""SFT with the k3 estimate of the KL divergence on the label."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..contract import setting
from ..needs import Needs
from .sources import FromReference, log_ratio, times


@dataclass(frozen=True, kw_only=True)
class SftK3(FromReference):
    """-log p_y + weight * (r - 1 - log r), r = q_y / p_y (TALR C.4; weight is the KL coefficient).

    Its gradient (1 - r) grad log p_y grows without bound as p_y -> 0: beyond log r = max_log_ratio, r is continued
    linearly in log r, so that value and gradient stay finite; the diagnostic gives the share of such tokens.
    """

    name: ClassVar[str] = "sft_k3"

    weight: float = setting(0.001, low=0.0)
    max_log_ratio: float = setting(60.0, above=0.0, high=80.0)

    @property
    def needs(self) -> Needs:
        return self.reading("label_logprob")

    def loss(self, step):
        log_p = step.student.log_p_label
        log_r = log_ratio(step.reference(self.source).get("label_logprob").to(log_p.dtype), log_p)
        step.log("clipped", (log_r.detach() > self.max_log_ratio).to(log_p.dtype))
        excess = (log_r - self.max_log_ratio).clamp(min=0)
        bounded = log_r.clamp(max=self.max_log_ratio)
        k3 = bounded.exp() - 1 - bounded + (math.exp(self.max_log_ratio) - 1) * excess
        return -log_p + times(self.weight, k3)
