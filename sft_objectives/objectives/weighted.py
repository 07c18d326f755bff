"""The token-weighted family: loss_t = -m_t log p_y with a detached weight m_t, from any source of statistics."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..contract import Objective, setting
from ..needs import MOMENTUM, SOURCES, Needs
from .sources import Statistics, statistics_of, times

if TYPE_CHECKING:
    from torch import Tensor

    from ..contract import Step


@dataclass(frozen=True, kw_only=True)
class Weighted(Objective):
    """loss_t = -m_t log p_y; a subclass gives m_t."""

    @property
    def highest_weight(self) -> float:
        """What m_t cannot exceed; above 1, no residual of weight 1 - m_t stands beside it."""
        return 1.0

    @abstractmethod
    def token_weight(self, step: Step) -> Tensor:
        """The detached (n,) weights m_t."""

    def loss(self, step):
        m = self.token_weight(step)
        step.log("weight", m)
        return times(-m, step.student.log_p_label)


@dataclass(frozen=True, kw_only=True)
class TokenWeighted(Weighted):
    """A weight that is a function of the statistics of one source.

    source: the distribution that the statistics come from. momentum: rho of
    theta_ema = rho theta_ema + (1 - rho) theta (PriFT D.1), used by source ema.
    """

    source: str = setting("online", choices=SOURCES)
    momentum: float = setting(MOMENTUM, low=0.0, high=1.0)

    fields: ClassVar[tuple[str, ...]] = ("label_logprob",)
    """What `weight` reads of a frozen source."""

    @property
    def needs(self) -> Needs:
        return Needs.reading(self.source, *self.fields, momentum=self.momentum)

    @abstractmethod
    def weight(self, q: Statistics, step: Step) -> Tensor:
        """The (n,) weights m_t from detached statistics q of the source."""

    def token_scalars(self, step):
        return {"log_p_label": statistics_of(step, self.source).log_p_label}

    def token_weight(self, step):
        return self.weight(statistics_of(step, self.source), step).to(step.student.log_p_label.dtype)
