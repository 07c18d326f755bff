"""KL(q || p) from a frozen reference to the student."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from ..contract import FROZEN_SOURCES, Needs, Objective, setting
from .weighted import MOMENTUM, needs_of


def full_divergence(student, log_q, *, entropy: bool = True):
    """(n,) sum_v q_v (log q_v - log p_v); without `entropy` -sum_v q_v log p_v.

    log_q gives the (m, V) log-probabilities of a chunk, -inf for words that do not count. One pass over the vocabulary.
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
    """(n,) -sum_v q_v log q_v of (n, V) probabilities, in nats; a word with q = 0 counts 0. Makes no third (n, V)."""
    import torch

    found = -torch.linalg.vecdot(q, log_q)
    if bool(found.isfinite().all()):
        return found
    return -(q * log_q.masked_fill(q == 0, 0)).sum(-1)


@dataclass(frozen=True, kw_only=True)
class Anchored(Objective):
    """A label term plus weight * KL(q || p).

    estimator full: over the whole vocabulary (needs logits or a live reference). estimator topk: over the top_k cached
    words (None: all that are cached) and one bucket for all others, a lower bound of the full KL; not in the papers.
    """

    source: str = setting("base", choices=FROZEN_SOURCES)
    momentum: float = setting(MOMENTUM, low=0.0, high=1.0)
    weight: float = setting(0.1, low=0.0)
    estimator: str = setting("full", choices=("full", "topk"))
    top_k: int | None = setting(None, kind=int, low=1, nullable=True)

    @property
    def needs(self) -> Needs:
        if self.estimator == "full":
            student = Needs(student=frozenset({"log_p_label", "expected_log_p"}))
            return student | needs_of(self.source, self.momentum, frozenset({"full"}))
        student = Needs(student=frozenset({"log_p_label", "log_p", "log_p_outside"}))
        return student | needs_of(self.source, self.momentum, frozenset({"top_k"}), self.top_k or 1)

    @abstractmethod
    def label_term(self, student):
        """The (n,) loss on the label."""

    def loss(self, student, references, columns, constants):
        return self.label_term(student) + self.weight * self.divergence(student, references)

    def diagnostics(self, student, references, columns, constants):
        return {f"kl_from_{self.source}": self.divergence(student, references).detach()}

    def divergence(self, student, references):
        """(n,) KL(q || p) in nats."""
        q = references[self.source]
        return self._full(student, q) if self.estimator == "full" else self._topk(student, q)

    def _full(self, student, reference):
        return full_divergence(student, lambda chunk: reference.log_probs(chunk.rows, chunk.logits.dtype))

    def _topk(self, student, reference):
        import torch

        ids, log_q = reference.support(self.top_k)
        padding = log_q.isneginf()
        ids = ids.where(~padding, ids[:, :1])
        log_p = student.log_p(ids)
        log_q = log_q.to(log_p.dtype)
        q = log_q.exp()
        divergence = (q * (log_q - log_p).masked_fill(padding, 0)).sum(-1)
        if ids.shape[-1] >= student.vocab_size:
            return divergence
        q_tail = (1 - q.sum(-1)).clamp(min=0)
        return divergence + torch.special.xlogy(q_tail, q_tail) - q_tail * student.log_p_outside(ids)
