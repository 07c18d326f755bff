"""The token-weighted family: loss_t = -m_t log p_y with a detached weight m_t, from any source of statistics."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..contract import SOURCES, BatchConstants, Needs, Objective, setting

if TYPE_CHECKING:
    from torch import Tensor

    from ..reference import Reference
    from ..student import Student

MOMENTUM = 0.999
"""Default of the moving average's momentum (PriFT D.1, rho); the paper prints no value."""


class StudentStatistics:
    """Detached statistics of the student, as a source of token weights."""

    def __init__(self, student: Student) -> None:
        self._student = student

    @property
    def log_p_label(self) -> Tensor:
        """(n,) log-probability of the label."""
        return self._student.log_p_label.detach()

    @property
    def entropy(self) -> Tensor:
        """(n,) entropy over the whole vocabulary."""
        return self._student.entropy

    def top_k(self, k: int) -> Tensor:
        """(n, min(k, V)) log-probabilities of the most probable words."""
        return self._student.top_k(k)[0]

    def label_mass(self, *, strict: bool) -> Tensor:
        """(n,) mass of the words that are no more probable than the label; see `sft_objectives.reference`."""
        from ..reference import label_mass

        return self._student.statistic(lambda chunk: label_mass(chunk.logits, chunk.labels, strict=strict))


class ReferenceStatistics:
    """The same statistics of a frozen reference."""

    def __init__(self, reference: Reference, labels: Tensor | None) -> None:
        self._reference = reference
        self._labels = labels

    @property
    def log_p_label(self) -> Tensor:
        return self._reference.get("label_logprob")

    @property
    def entropy(self) -> Tensor:
        return self._reference.get("entropy")

    def top_k(self, k: int) -> Tensor:
        return self._reference.support(k)[1]

    def label_mass(self, *, strict: bool) -> Tensor:
        if not strict:
            return self._reference.get("label_mass")
        from ..reference import label_mass

        assert self._labels is not None, "the label's rank needs the labels"
        return label_mass(self._reference.full_logits(slice(None)), self._labels, strict=True)


Statistics = StudentStatistics | ReferenceStatistics

_REFERENCE_FIELDS = {
    "log_p_label": {"label_logprob"},
    "entropy": {"entropy"},
    "top_k": {"support_ids", "support_logprobs"},
    "label_mass": {"label_mass"},
    "label_mass_strict": {"logits"},
    "full": {"logits"},
}
_STUDENT_STATISTICS = {"label_mass": "statistic", "label_mass_strict": "statistic"}


def statistics_of(source: str, student: Student | None, references: Mapping[str, Reference]) -> Statistics:
    """The statistics of `source`; `student` may be None for a frozen source."""
    if source == "online":
        assert student is not None, "an online source needs the student"
        return StudentStatistics(student)
    return ReferenceStatistics(references[source], None if student is None else student.labels)


def needs_of(source: str, momentum: float, reads: frozenset[str], top_k: int = 0) -> Needs:
    """The needs of reading some of log_p_label, entropy, top_k, label_mass, label_mass_strict, full from `source`."""
    if source == "online":
        return Needs(student=frozenset(_STUDENT_STATISTICS.get(name, name) for name in reads), top_k=top_k)
    fields = frozenset(field for name in reads for field in _REFERENCE_FIELDS[name])
    return Needs(
        student=frozenset(),
        references={source: fields},
        support={source: top_k} if "top_k" in reads else {},
        state="ema" if source == "ema" else "none",
        momentum=momentum if source == "ema" else None,
    )


@dataclass(frozen=True, kw_only=True)
class Weighted(Objective):
    """loss_t = -m_t log p_y; a subclass gives m_t."""

    @abstractmethod
    def token_weight(
        self,
        student: Student,
        references: Mapping[str, Reference],
        columns: Mapping[str, Tensor],
        constants: BatchConstants,
    ) -> Tensor:
        """The detached (n,) weights m_t; called like `loss`."""

    def loss(self, student, references, columns, constants):
        return -self.token_weight(student, references, columns, constants) * student.log_p_label

    def diagnostics(self, student, references, columns, constants):
        return {"weight": self.token_weight(student, references, columns, constants)}


@dataclass(frozen=True, kw_only=True)
class TokenWeighted(Weighted):
    """A weight that is a function of the statistics of one source.

    source: the distribution that the statistics come from. momentum: rho of
    theta_ema = rho theta_ema + (1 - rho) theta (PriFT D.1), used by source ema.
    """

    source: str = setting("online", choices=SOURCES)
    momentum: float = setting(MOMENTUM, low=0.0, high=1.0)

    reads: ClassVar[frozenset[str]] = frozenset({"log_p_label"})

    @property
    def needs(self) -> Needs:
        return Needs() | needs_of(self.source, self.momentum, self.reads)

    @abstractmethod
    def weight(self, statistics: Statistics, constants: BatchConstants) -> Tensor:
        """The (n,) weights m_t from detached statistics."""

    def token_weight(self, student, references, columns, constants):
        weight = self.weight(statistics_of(self.source, student, references), constants)
        return weight.to(student.log_p_label.dtype)
