"""IDFT: a power of the label's probability that depends on how typical the label is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import setting
from .weighted import TokenWeighted


@dataclass(frozen=True, kw_only=True)
class Idft(TokenWeighted):
    """m_t = p_y^exp(-phi), phi = clamp(log p_y + H, -bound, bound), H over the whole vocabulary (PriFT B; bound is b).

    variant repo: the exponent is clamp(exp(-phi), 0.1, 2) of the unclamped phi, as in the published code.
    """

    name: ClassVar[str] = "idft"
    fields: ClassVar[tuple[str, ...]] = ("label_logprob", "entropy")

    bound: float = setting(1.0, low=0.0)
    variant: str = setting("paper", choices=("paper", "repo"))

    def weight(self, q, step):
        phi = q.log_p_label + q.entropy
        if self.variant == "paper":
            exponent = (-phi.clamp(-self.bound, self.bound)).exp()
        else:
            exponent = (-phi).exp().clamp(0.1, 2.0)
        return (exponent * q.log_p_label).exp()
