"""KL(q || p) from a frozen reference to the student."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..contract import setting
from ..needs import Needs
from .sources import SUPPORT, FromReference, times

if TYPE_CHECKING:
    from torch import Tensor


def full_divergence(student, log_q, *, entropy: bool = True):
    """(n,) sum_v q_v (log q_v - log p_v); without `entropy` -sum_v q_v log p_v.

    log_q gives the (m, V) log-probabilities of a chunk, -inf for ids that do not count. One pass over the vocabulary.
    """
    import torch

    entropies = {}

    def q(chunk):
        log = log_q(chunk)
        q = log.exp()
        if entropy:
            entropies[chunk.rows.start] = entropy_of(q, log)
        return q

    cross_entropy = -student.expected_log_p(q)
    return cross_entropy - torch.cat(list(entropies.values())) if entropy else cross_entropy


def entropy_of(q, log_q):
    """(n,) -sum_v q_v log q_v of (n, V) probabilities, in nats; an id with q = 0 counts 0."""
    from ..reductions import dot

    return -dot(q, log_q)


@dataclass(frozen=True, kw_only=True)
class Anchored(FromReference):
    """A label term plus weight * KL(q || p).

    estimator full: over the whole vocabulary (needs logits or a live reference). estimator topk: over the top_k cached
    ids (None: all that are cached) and one bucket for all others, a lower bound of the full KL; not in the papers.
    """

    weight: float = setting(0.1, low=0.0)
    estimator: str = setting("full", choices=("full", "topk"))
    top_k: int | None = setting(None, kind=int, low=1, nullable=True)

    @property
    def needs(self) -> Needs:
        return self.reading("logits") if self.estimator == "full" else self.reading(*SUPPORT, top_k=self.top_k)

    @abstractmethod
    def label_term(self, log_p_label: Tensor) -> Tensor:
        """The (n,) loss on the label."""

    def loss(self, step):
        divergence = self.divergence(step)
        step.log(f"kl_from_{self.source}", divergence)
        return self.label_term(step.student.log_p_label) + times(self.weight, divergence)

    def divergence(self, step):
        """(n,) KL(q || p) in nats."""
        student, q = step.student, step.reference(self.source)
        if self.estimator == "topk":
            return self._topk(student, q)
        return full_divergence(student, lambda chunk: q.log_probs(chunk.rows, chunk.logits.dtype))

    def _topk(self, student, reference):
        import torch

        ids, log_q = reference.support(self.top_k)
        padding = log_q.isneginf()
        ids = ids.where(~padding, ids[:, :1])
        log_p = student.log_p(ids)
        log_q = log_q.to(log_p.dtype)
        q = log_q.exp()
        divergence = (q * (log_q - log_p).masked_fill(q == 0, 0)).sum(-1)
        if ids.shape[-1] >= student.vocab_size:
            return divergence
        q_tail = (1 - q.sum(-1)).clamp(min=0)
        return divergence + torch.special.xlogy(q_tail, q_tail) - times(q_tail, student.log_p_outside(ids))
