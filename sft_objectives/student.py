"""Statistics of the student's distribution: the only thing an objective knows of the model that is trained.

An objective is written once against `Student`. `DenseStudent` provides it from logits; a fused provider computes the
same statistics chunk by chunk. A provider holds n rows, each with a label, and must offer what `Student` declares:

differentiable, so that `torch.autograd.grad(loss, statistics)` followed by one vector-Jacobian product gives dloss/dz
    log_p_label                 (n,)    gradient e_y - p
    log_p(ids)                  (n, K)  gradient e_k - p for each id
    expected_log_p(weights)     (n,)    gradient w - p * sum(w)
    tempered_log_p(t)           (n,)    gradient softmax(logits / t) - p
    mean_log_p                  (n,)    gradient 1/V - p
    log_p_outside(ids)          (n,)    gradient softmax over the vocabulary outside ids, minus p
detached
    entropy                     (n,)
    top_k(k)                    two (n, min(k, V)) tensors
    logsumexp                   (n,)
    statistic(of_chunk)         (n,)

Rules for a provider:
- `log_p_label` is the same tensor at each access (one leaf). The methods may return a new tensor for each call.
- All statistics have the provider's dtype: float32, or float64 if the logits are float64. Reductions over the
  vocabulary run in that dtype, on logits from which the row maximum was subtracted.
- `expected_log_p(weights)` and `statistic(of_chunk)` call their argument under no_grad with a `Chunk` of n or fewer
  consecutive rows; together the chunks cover the rows, in order. A provider may call `weights` again for a chunk (it
  gives equal weights each time), say to form the gradient. `log_p_outside`, `mean_log_p` and `tempered_log_p` follow
  from these two, as `Student` shows; a provider may compute them more cheaply.
- Nothing is asked before `Objective.loss` runs, so a provider evaluates lazily, and each statistic once: `entropy`,
  `mean_log_p` and `top_k(k)` are kept for further accesses.
- A fused provider makes each differentiable statistic a leaf, runs `loss`, takes the gradient at the leaves
  (log_p_label: a, log_p: b, expected_log_p: c, log_p_outside: d, mean_log_p: m, all per row) and forms
  dloss/dz = a e_y + scatter(ids, b) + c w + d softmax_outside + m / V - p (a + sum(b) + c sum(w) + d + m).
- References, columns and constants given to `loss` are sliced to the provider's rows; `Chunk.rows` counts from the
  provider's first row and indexes them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some consecutive rows of the student, without gradient.

    rows: their place among the provider's rows. logits: (m, V) in the statistics' dtype, up to a constant per row: use
    them in ways that such a constant does not change. labels: (m,) int64.
    """

    rows: slice
    logits: Tensor
    labels: Tensor

    @property
    def log_p(self) -> Tensor:
        """(m, V) log-probabilities."""
        return self.logits.log_softmax(-1)

    def p(self, temperature: float = 1.0) -> Tensor:
        """(m, V) softmax of logits / temperature, new: it may be written on."""
        tempered = self.logits / temperature
        return torch.softmax(tempered, -1, out=tempered)


OfChunk = Callable[[Chunk], Tensor]


class Student(ABC):
    """n rows of the student. labels: (n,) int64. vocab_size: V."""

    labels: Tensor
    vocab_size: int

    @property
    @abstractmethod
    def log_p_label(self) -> Tensor:
        """(n,) log-probability of the label, differentiable."""

    @abstractmethod
    def log_p(self, ids: Tensor) -> Tensor:
        """(n, K) log-probabilities of (n, K) int64 ids, differentiable."""

    @abstractmethod
    def expected_log_p(self, weights: OfChunk) -> Tensor:
        """(n,) sum over v of w_v log p_v, differentiable in p; ids of weight 0 count 0 also where p is 0.

        weights: gives the (m, V) weights of a chunk; they carry no gradient and need not sum to 1.
        """

    def tempered_log_p(self, temperature: float) -> Tensor:
        """(n,) sum over v of w_v log p_v with the detached w = softmax(logits / temperature), differentiable in p."""
        return self.expected_log_p(lambda chunk: chunk.p(temperature))

    @cached_property
    def mean_log_p(self) -> Tensor:
        """(n,) mean over the vocabulary of log p_v, differentiable."""
        share = 1 / self.vocab_size
        return self.expected_log_p(lambda chunk: chunk.logits.new_full((1, 1), share).expand_as(chunk.logits))

    @abstractmethod
    def statistic(self, of_chunk: OfChunk) -> Tensor:
        """(n,) detached values of a function of the whole distribution; `of_chunk` gives the (m,) of a chunk."""

    @property
    @abstractmethod
    def entropy(self) -> Tensor:
        """(n,) Shannon entropy over the whole vocabulary in nats, detached."""

    @abstractmethod
    def top_k(self, k: int) -> tuple[Tensor, Tensor]:
        """(n, min(k, V)) log-probabilities, decreasing, and their int64 ids, detached."""

    @property
    @abstractmethod
    def logsumexp(self) -> Tensor:
        """(n,) log of the sum of exp of the raw logits, detached."""

    def log_p_outside(self, ids: Tensor) -> Tensor:
        """(n,) log-probability of all that are not among (n, K) ids, differentiable.

        Exact also where ids hold almost all the mass: with w = p restricted to the others and renormalised,
        log sum_outside p = sum w log p + H(w), and its gradient is w - p. -inf where none is left.
        """

        def outside(chunk: Chunk) -> Tensor:
            return chunk.logits.scatter(1, ids[chunk.rows], -torch.inf)

        def entropy(chunk: Chunk) -> Tensor:
            log_w = outside(chunk).log_softmax(-1)
            return -(log_w.exp() * log_w.masked_fill(log_w == -torch.inf, 0)).sum(-1)

        return self.expected_log_p(lambda chunk: outside(chunk).softmax(-1)) + self.statistic(entropy)


class DenseStudent(Student):
    """The statistics from (n, V) logits, differentiable in the logits.

    logits of any floating dtype (all reductions in float32, in float64 for float64 logits); labels (n,) int64 in
    [0, V). `chunk_size` bounds the rows that a callable sees at once, which bounds the memory of its (m, V) weights.
    """

    def __init__(self, logits: Tensor, labels: Tensor, *, chunk_size: int = 1024) -> None:
        raw = logits if logits.dtype == torch.float64 else logits.float()
        self.labels = labels
        self.vocab_size = logits.shape[-1]
        self._peak = raw.detach().amax(-1, keepdim=True)
        self._logits = raw - self._peak
        self._logsumexp = self._logits.logsumexp(-1, keepdim=True)
        self._chunk_size = chunk_size
        self._top: dict[int, tuple[Tensor, Tensor]] = {}

    @cached_property
    def log_p_label(self) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.log_p(self.labels.unsqueeze(-1)).squeeze(-1)

    def log_p(self, ids: Tensor) -> Tensor:
        return self._logits.gather(-1, ids) - self._logsumexp

    def expected_log_p(self, weights: OfChunk) -> Tensor:
        parts = []
        for chunk in self._chunks():
            with torch.no_grad():
                w = weights(chunk)
            log_p = self._logits[chunk.rows] - self._logsumexp[chunk.rows]
            parts.append((w * log_p.masked_fill(w == 0, 0)).sum(-1))
        return torch.cat(parts)

    @torch.no_grad()
    def statistic(self, of_chunk: OfChunk) -> Tensor:
        return torch.cat([of_chunk(chunk) for chunk in self._chunks()])

    @cached_property
    def entropy(self) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.statistic(lambda chunk: torch.special.entr(chunk.logits.softmax(-1)).sum(-1))

    @torch.no_grad()
    def top_k(self, k: int) -> tuple[Tensor, Tensor]:
        if k not in self._top:
            values, ids = self._logits.topk(min(k, self.vocab_size), dim=-1)
            self._top[k] = values - self._logsumexp, ids
        return self._top[k]

    @property
    def logsumexp(self) -> Tensor:
        return (self._logsumexp.detach() + self._peak).squeeze(-1)

    def _chunks(self) -> list[Chunk]:
        n = len(self.labels)
        slices = [slice(start, min(start + self._chunk_size, n)) for start in range(0, n, self._chunk_size)]
        logits = self._logits.detach()
        return [Chunk(rows, logits[rows], self.labels[rows]) for rows in slices or [slice(0, 0)]]
