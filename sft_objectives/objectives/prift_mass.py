"""PriFT-mass: keep labels that the pretrained model supports above a fraction of its mass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import setting
from ..needs import SOURCES, Needs
from .weighted import TokenWeighted


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
        field = "label_mass" if self.variant == "paper" else "logits"
        return Needs.reading(self.source, field, momentum=self.momentum)

    def weight(self, q, step):
        return q.label_mass(strict=self.variant == "repo") >= self.threshold
