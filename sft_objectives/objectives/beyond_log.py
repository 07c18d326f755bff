"""Beyond log likelihood: a power family between -log p and -p."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import BatchConstants, Objective, setting
from ..needs import BatchNeeds, Needs


@dataclass(frozen=True, kw_only=True)
class BeyondLog(Objective):
    """(1 - p_y^a) / a with a = exponent; -log p_y at a = 0 (TARGET Table 4).

    threshold: keep only the tokens with p_y >= threshold (keep above) or p_y < threshold (below). normalizer kept:
    divide by the number of tokens kept in the global batch, as the published code does.
    """

    name: ClassVar[str] = "beyond_log"

    exponent: float = setting(1.0, low=0.0)
    threshold: float | None = setting(None, kind=float, low=0.0, high=1.0, nullable=True)
    keep: str = setting("above", choices=("above", "below"))
    normalizer: str = setting("supervised", choices=("supervised", "kept"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalizer == "kept" and self.threshold is None:
            raise self.error("normalizer='kept' keeps by a threshold; allowed: a number; set objective.threshold")

    @property
    def needs(self) -> Needs:
        return Needs(batch=BatchNeeds(student=True) if self.normalizer == "kept" else None)

    def token_scalars(self, step):
        return {"log_p_label": step.student.log_p_label.detach()}

    def batch_constants(self, token_scalars, reduce):
        kept = self._kept(token_scalars["log_p_label"]) & token_scalars["mask"].bool()
        return BatchConstants(tokens={"kept": kept}, normalizer=float(reduce(kept.sum().unsqueeze(0)).sum()))

    def loss(self, step):
        log_p = step.student.log_p_label
        loss = -log_p if self.exponent == 0 else -_expm1(self.exponent * log_p) / self.exponent
        if self.threshold is None:
            return loss
        kept = step.constant("kept") if self.normalizer == "kept" else self._kept(log_p.detach())
        step.log("weight", kept.to(log_p.dtype))
        return loss * kept

    def _kept(self, log_p):
        above = log_p.exp() >= float(self.threshold or 0)
        return above if self.keep == "above" else ~above


def _expm1(x):
    """exp(x) - 1 with a gradient that is exp(x) to the last bits: that of torch's expm1 is 1 + (exp(x) - 1), which
    rounds to 0 where exp(x) is far below 1. Near 0, where exp(x) - 1 cancels, torch's is exact."""
    import torch

    far = x < -0.5
    return torch.where(far, x.exp() - 1, x.masked_fill(far, 0).expm1())
