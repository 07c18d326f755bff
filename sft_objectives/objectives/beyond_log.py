"""Beyond log likelihood: a power family between -log p and -p."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..contract import BatchConstants, Needs, Objective, setting
from .weighted import statistics_of


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
        batch = self.normalizer == "kept"
        return replace(Needs(), batch=batch, batch_student=frozenset({"log_p_label"} if batch else ()))

    def token_scalars(self, student, references, columns):
        return {"log_p_label": statistics_of("online", student, references).log_p_label}

    def batch_constants(self, token_scalars, reduce):
        if self.normalizer == "supervised":
            return BatchConstants()
        kept = self._kept(token_scalars["log_p_label"]) & token_scalars["mask"].bool()
        return BatchConstants(tokens={"kept": kept}, normalizer=float(reduce(kept.sum().unsqueeze(0)).sum()))

    def loss(self, student, references, columns, constants):
        log_p = student.log_p_label
        loss = -log_p if self.exponent == 0 else -(self.exponent * log_p).expm1() / self.exponent
        return loss if self.threshold is None else loss * self._selected(student, constants)

    def diagnostics(self, student, references, columns, constants):
        return (
            {}
            if self.threshold is None
            else {"weight": self._selected(student, constants).to(student.log_p_label.dtype)}
        )

    def _selected(self, student, constants):
        return constants.token("kept") if self.normalizer == "kept" else self._kept(student.log_p_label.detach())

    def _kept(self, log_p):
        above = log_p.exp() >= float(self.threshold or 0)
        return above if self.keep == "above" else ~above
