"""Where an objective's statistics come from: the student itself, without gradient, or a frozen model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..contract import Objective, setting
from ..needs import FROZEN_SOURCES, MOMENTUM, Needs

if TYPE_CHECKING:
    from torch import Tensor

    from ..contract import Step
    from ..reference import Reference
    from ..student import Student

SUPPORT = ("support_ids", "support_logprobs")


@dataclass(frozen=True, kw_only=True)
class FromReference(Objective):
    """Reads one frozen distribution q. momentum: rho of the moving average (PriFT D.1), used by source ema."""

    source: str = setting("base", choices=FROZEN_SOURCES)
    momentum: float = setting(MOMENTUM, low=0.0, high=1.0)

    def reading(self, *fields: str, top_k: int | None = 0) -> Needs:
        """The needs of reading these fields of q; top_k None: of all ids that are cached."""
        return Needs.reading(self.source, *fields, top_k=1 if top_k is None else top_k, momentum=self.momentum)


def times(weight: Tensor | float, value: Tensor) -> Tensor:
    """weight * value with a detached weight; 0 where the weight is 0, also where the value (of a probability 0) is not
    finite."""
    if isinstance(weight, float | int):
        return weight * value if weight else value.detach().new_zeros(value.shape)
    return (weight * value).masked_fill(weight == 0, 0)


def log_ratio(log_p: Tensor, log_q: Tensor) -> Tensor:
    """log p - log q; 0, without gradient, where both are probabilities of 0."""
    return (log_p - log_q).masked_fill(log_p.isneginf() & log_q.isneginf(), 0)


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
        """(n, min(k, V)) log-probabilities of the most probable ids."""
        return self._student.top_k(k)[0]

    def label_mass(self, *, strict: bool) -> Tensor:
        """(n,) mass of the ids that are no more probable than the label; see `sft_objectives.reference`."""
        from common.distributions import label_mass

        return self._student.statistic(lambda chunk: label_mass(chunk.logits, chunk.labels, strict=strict))


class ReferenceStatistics:
    """The same statistics of a frozen reference."""

    def __init__(self, reference: Reference, step: Step) -> None:
        self._reference, self._step = reference, step

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
        from common.distributions import label_mass

        return label_mass(self._reference.full_logits(slice(None)), self._step.student.labels, strict=True)


Statistics = StudentStatistics | ReferenceStatistics


def statistics_of(step: Step, source: str) -> Statistics:
    """The statistics of `source`; only "online" reads the step's student."""
    if source == "online":
        return StudentStatistics(step.student)
    return ReferenceStatistics(step.reference(source), step)
