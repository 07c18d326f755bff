"""SFT with the k3 estimate of the KL divergence on the label."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..contract import FROZEN_SOURCES, Needs, Objective, setting
from .weighted import MOMENTUM, needs_of


@dataclass(frozen=True, kw_only=True)
class SftK3(Objective):
    """-log p_y + weight * (r - 1 - log r), r = q_y / p_y (TALR C.4; weight is the KL coefficient).

    Its gradient (1 - r) grad log p_y grows without bound as p_y -> 0: beyond log r = max_log_ratio, r is continued
    linearly in log r, so that value and gradient stay finite; diagnostics give the share of such tokens.
    """

    name: ClassVar[str] = "sft_k3"

    source: str = setting("base", choices=FROZEN_SOURCES)
    momentum: float = setting(MOMENTUM, low=0.0, high=1.0)
    weight: float = setting(0.001, low=0.0)
    max_log_ratio: float = setting(60.0, above=0.0, high=80.0)

    @property
    def needs(self) -> Needs:
        return Needs() | needs_of(self.source, self.momentum, frozenset({"log_p_label"}))

    def loss(self, student, references, columns, constants):
        log_r = self._log_ratio(student, references)
        excess = (log_r - self.max_log_ratio).clamp(min=0)
        r = log_r.clamp(max=self.max_log_ratio).exp() + math.exp(self.max_log_ratio) * excess
        return -student.log_p_label + self.weight * (r - 1 - log_r)

    def diagnostics(self, student, references, columns, constants):
        clipped = self._log_ratio(student, references).detach() > self.max_log_ratio
        return {"clipped": clipped.to(student.log_p_label.dtype)}

    def _log_ratio(self, student, references):
        return references[self.source].get("label_logprob").to(student.log_p_label.dtype) - student.log_p_label
