"""What, besides the label, the student is pulled toward: residual distributions R and their cross-entropy CE(R, p)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..contract import Objective, setting
from ..needs import FROZEN_SOURCES, Needs
from .sources import SUPPORT, FromReference, times

if TYPE_CHECKING:
    from torch import Tensor

    from ..contract import Step


@dataclass(frozen=True, kw_only=True)
class Residual(Objective):
    """A detached distribution R per position. Its settings are validated like an objective's."""

    @abstractmethod
    def cross_entropy(self, step: Step) -> Tensor:
        """(n,) CE(R, p) = -sum_v R(v) log p_v, differentiable in p."""


@dataclass(frozen=True, kw_only=True)
class Truncated(FromReference, Residual):
    """R = q on its top_k ids, renormalised there; top_k None: all cached ids (TARGET, App. A: 64)."""

    name: ClassVar[str] = "truncated"

    source: str = setting("teacher", choices=FROZEN_SOURCES)
    top_k: int | None = setting(None, kind=int, low=1, nullable=True)

    @property
    def needs(self) -> Needs:
        return self.reading(*SUPPORT, top_k=self.top_k)

    def distribution(self, log_p, log_q):
        """R on the support from detached (n, K) log-probabilities of the student and the reference."""
        return log_q.softmax(-1)

    def cross_entropy(self, step):
        ids, log_q = step.reference(self.source).support(self.top_k)
        log_p = step.student.log_p(ids)
        return -times(self.distribution(log_p.detach(), log_q.to(log_p.dtype)), log_p).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Geometric(Truncated):
    """R proportional to sg(p)^(1 - exponent) q^exponent on the support (TARGET sec. 6; exponent is eta)."""

    name: ClassVar[str] = "geometric"

    exponent: float = setting(0.5, low=0.0, high=1.0)

    def distribution(self, log_p, log_q):
        padding = log_q.isneginf()
        score = times(1 - self.exponent, log_p) + self.exponent * log_q.masked_fill(padding, 0)
        return _on_support(score.masked_fill(padding, -float("inf")))


@dataclass(frozen=True, kw_only=True)
class Product(Truncated):
    """R proportional to sg(p) q^exponent on the support (TARGET sec. 6, before the interpolating form)."""

    name: ClassVar[str] = "product"

    exponent: float = setting(0.5, low=0.0)

    def distribution(self, log_p, log_q):
        padding = log_q.isneginf()
        score = log_p + self.exponent * log_q.masked_fill(padding, 0)
        return _on_support(score.masked_fill(padding, -float("inf")))


def _on_support(score: Tensor) -> Tensor:
    """softmax of (n, K) scores; all 0 in a row whose every id the student rules out: nothing is left to pull to."""
    nothing = score.isneginf().all(-1, keepdim=True)
    return score.masked_fill(nothing, 0).softmax(-1).masked_fill(nothing, 0)


@dataclass(frozen=True, kw_only=True)
class Full(FromReference, Residual):
    """R = q over the whole vocabulary; needs logits or a live reference."""

    name: ClassVar[str] = "full"

    source: str = setting("teacher", choices=FROZEN_SOURCES)

    @property
    def needs(self) -> Needs:
        return self.reading("logits")

    def cross_entropy(self, step):
        q = step.reference(self.source)
        return -step.student.expected_log_p(lambda chunk: q.log_probs(chunk.rows, chunk.logits.dtype).exp())


@dataclass(frozen=True, kw_only=True)
class Uniform(Residual):
    """R = 1/V (label smoothing)."""

    name: ClassVar[str] = "uniform"

    def cross_entropy(self, step):
        return -step.student.mean_log_p


@dataclass(frozen=True, kw_only=True)
class Sharpened(Residual):
    """R = sg softmax(z / temperature): the student's own distribution, sharpened below 1 (GEM's repulsion)."""

    name: ClassVar[str] = "sharpened"

    temperature: float = setting(0.7, above=0.0)

    def cross_entropy(self, step):
        return -step.student.tempered_log_p(self.temperature)


@dataclass(frozen=True, kw_only=True)
class Own(Residual):
    """R = sg p: no gradient, only the value, which is the entropy (TARGET Corollary 1)."""

    name: ClassVar[str] = "self"

    def cross_entropy(self, step):
        return step.student.entropy


RESIDUALS: dict[str, type[Any]] = {
    cls.name: cls for cls in (Truncated, Geometric, Product, Full, Uniform, Sharpened, Own)
}
