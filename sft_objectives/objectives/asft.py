"""ASFT: DFT, anchored to the base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import setting
from .divergence import Anchored
from .sources import times


@dataclass(frozen=True, kw_only=True)
class Asft(Anchored):
    """-sg(p_y) log p_y + weight * KL(q || p), q the base model (PriFT B, LP-SFT C.1; weight is beta)."""

    name: ClassVar[str] = "asft"

    weight: float = setting(0.05, low=0.0)

    def label_term(self, log_p_label):
        return times(-log_p_label.detach().exp(), log_p_label)
