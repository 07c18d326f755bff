"""PriFT-mass: keep labels that the pretrained model supports above a fraction of its mass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import SOURCES, Needs, setting
from .weighted import TokenWeighted, needs_of


@dataclass(frozen=True, kw_only=True)
class PriftMass(TokenWeighted):
    """m_t = 1[u >= threshold], u = sum of q(v) over v with q(v) <= q(y) (PriFT eq. 3; threshold is tau).

    variant repo: u = sum over q(v) < q(y), plus q(y), as in the published code; it needs the whole reference.
    """

    name: ClassVar[str] = "prift_mass"

    source: str = setting("base", choices=SOURCES)
    threshold: float = setting(0.5, low=0.0, high=1.0)
    variant: str = setting("paper", choices=("paper", "repo"))

    @property
    def needs(self) -> Needs:
        mass = "label_mass" if self.variant == "paper" else "label_mass_strict"
        return Needs() | needs_of(self.source, self.momentum, frozenset({mass}))

    def weight(self, statistics, constants):
        return statistics.label_mass(strict=self.variant == "repo") >= self.threshold
