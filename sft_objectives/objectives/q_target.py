"""Q-targets in general: any weight rule on the label, any residual distribution beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from ..contract import Objective, setting
from ..needs import Needs
from .residuals import RESIDUALS, Residual
from .sources import times
from .weighted import Weighted


@dataclass(frozen=True, kw_only=True)
class QTarget(Objective):
    """a_t CE(e_y, p) + b_t CE(R_t, p) (TARGET sec. 4, eq. 4-5).

    a_t: the weight `rule` with `rule_settings`, any objective of the token-weighted family. R_t: `residual` with
    `residual_settings`. b_t: residual_weight, where adaptive is 1 - a_t; with `residual_rule`, that rule's weight times
    residual_weight (adaptive: 1). Rule and residual each have their own source. The defaults are target_sft.
    """

    name: ClassVar[str] = "q_target"

    rule: str = setting("dft")
    rule_settings: dict[str, Any] = field(default_factory=dict)
    residual: str = setting("geometric", choices=tuple(RESIDUALS))
    residual_settings: dict[str, Any] = field(default_factory=dict)
    residual_weight: float | str = setting("adaptive", kind=float, choices=("adaptive",))
    residual_rule: str | None = setting(None, kind=str, nullable=True)
    residual_rule_settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rule_settings", "residual_settings", "residual_rule_settings"):
            if not isinstance(getattr(self, name), Mapping):
                raise self.error(f"{name}={getattr(self, name)!r} is not allowed; allowed: a mapping of settings")
        _ = self.needs
        highest = self.label_part.highest_weight
        if self.residual_weight == "adaptive" and self.residual_rule is None and highest > 1:
            raise self.error(
                f"residual_weight='adaptive' (1 - a) is not allowed with {self.rule}, whose weights a reach "
                f"{highest:.3g}; set objective.residual_weight to a number, or rule settings that keep them below 1"
            )
        if self.residual_rule and (self.residual_part.needs.batch or self.residual_part.needs.dataset):
            raise self.error(f"residual_rule={self.residual_rule!r} depends on the batch; allowed: token-local rules")

    @cached_property
    def label_part(self) -> Weighted:
        """The rule of a_t."""
        return self._weighted(self.rule, self.rule_settings)

    @cached_property
    def residual_part(self) -> Weighted:
        """The rule of b_t, if there is one."""
        return self._weighted(str(self.residual_rule), self.residual_rule_settings)

    @cached_property
    def distribution(self) -> Residual:
        """The residual R."""
        known = RESIDUALS[self.residual].__dataclass_fields__
        for key in self.residual_settings:
            if key not in known:
                raise self.error(
                    f"no residual setting {key!r} of {self.residual}; allowed: {', '.join(known) or 'none'}"
                )
        return RESIDUALS[self.residual](**self.residual_settings)

    def _weighted(self, rule: str, settings: dict[str, Any]) -> Weighted:
        from ..registry import load

        objective = load(rule, **settings)
        if not isinstance(objective, Weighted):
            raise self.error(f"rule {rule!r} is no token weight; allowed: an objective of the token-weighted family")
        return objective

    @property
    def needs(self) -> Needs:
        needs = self.label_part.needs | self.distribution.needs
        return needs | self.residual_part.needs if self.residual_rule else needs

    def condensed(self, cache_scalars):
        return self.label_part.condensed(cache_scalars)

    def dataset_constants(self, cache_scalars):
        return self.label_part.dataset_constants(cache_scalars)

    def token_scalars(self, step):
        return self.label_part.token_scalars(step)

    def batch_constants(self, token_scalars, reduce):
        return self.label_part.batch_constants(token_scalars, reduce)

    def loss(self, step):
        a = self.label_part.token_weight(step)
        step.log("weight", a)
        label = times(-a, step.student.log_p_label)
        return label + times(self._b(a, step), self.distribution.cross_entropy(step))

    def _b(self, a, step):
        if self.residual_rule:
            b = self.residual_part.token_weight(step)
            return b if isinstance(self.residual_weight, str) else b * self.residual_weight
        return 1 - a if isinstance(self.residual_weight, str) else self.residual_weight
