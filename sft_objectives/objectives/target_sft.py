"""TARGET-SFT: what the label does not earn goes to a teacher-guided residual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import setting
from ..needs import FROZEN_SOURCES, Needs
from .residuals import Geometric, Product
from .sources import FromReference, times


@dataclass(frozen=True, kw_only=True)
class TargetSft(FromReference):
    """CE(Q, p) with Q = g e_y + (1 - g) R, g = sg(p_y), Q detached (TARGET eq. 7-8).

    R is proportional to sg(p)^(1 - exponent) q^exponent on the teacher's top_k cached ids (exponent is eta);
    residual_form product: to sg(p) q^exponent. residual_weight: adaptive is 1 - g, a number is the c of Table 6.
    """

    name: ClassVar[str] = "target_sft"

    source: str = setting("teacher", choices=FROZEN_SOURCES)
    exponent: float = setting(0.5, low=0.0)
    top_k: int | None = setting(None, kind=int, low=1, nullable=True)
    residual_weight: float | str = setting("adaptive", kind=float, choices=("adaptive",), low=0.0)
    residual_form: str = setting("geometric", choices=("geometric", "product"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.residual_form == "geometric" and self.exponent > 1:
            raise self.error(f"exponent={self.exponent} is above 1; allowed: 0 to 1; or set residual_form=product")

    @property
    def residual(self) -> Geometric | Product:
        """The residual distribution R."""
        form = Geometric if self.residual_form == "geometric" else Product
        return form(source=self.source, momentum=self.momentum, exponent=self.exponent, top_k=self.top_k)

    @property
    def needs(self) -> Needs:
        return self.residual.needs

    def loss(self, step):
        g = step.student.log_p_label.detach().exp()
        c = 1 - g if isinstance(self.residual_weight, str) else self.residual_weight
        return times(-g, step.student.log_p_label) + times(c, self.residual.cross_entropy(step))
