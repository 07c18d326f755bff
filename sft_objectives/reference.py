"""What is known of a frozen distribution (base, teacher, checkpoint, moving average, old policy) at each position."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.distributions import label_mass, window_support

SCALARS_AND_SUPPORT = frozenset(
    [
        "support_ids",
        "support_logprobs",
        "label_logprob",
        "label_mass",
        "logsumexp",
        "entropy",
        "n1",
        "n2",
        "ceil_n1",
        "ceil_n2",
    ]
)


@dataclass(frozen=True, eq=False)
class Reference:
    """Fields of N positions; each may be None. Log-probabilities are natural and normalised over the vocabulary.

    support_ids (N, K) int64 and support_logprobs (N, K): the K most probable ids, in decreasing order; an entry of
    log-probability -inf is padding. label_logprob (N,). label_mass (N,): PriFT's u, eq. 3. logsumexp (N,) of the raw
    logits. entropy (N,) over the whole vocabulary. n1, n2 (N,) float64: exp of the Shannon and the collision entropy of
    the top-30 window (LP-SFT eq. 2-4); ceil_n1, ceil_n2 (N,) int64. logits (N, V), or
    live = (hidden (N, D), head_weight (V, D), head_bias (V,) or None): the whole distribution.
    """

    support_ids: Tensor | None = None
    support_logprobs: Tensor | None = None
    label_logprob: Tensor | None = None
    label_mass: Tensor | None = None
    logsumexp: Tensor | None = None
    entropy: Tensor | None = None
    n1: Tensor | None = None
    n2: Tensor | None = None
    ceil_n1: Tensor | None = None
    ceil_n2: Tensor | None = None
    logits: Tensor | None = None
    live: tuple[Tensor, Tensor, Tensor | None] | None = None

    @staticmethod
    @torch.no_grad()
    def from_logits(logits: Tensor, labels: Tensor, *, top_k: int) -> Reference:
        """Every field from (N, V) logits and (N,) labels; top_k above V gives V ids.

        Labels outside [0, V) (ignored positions) get the fields of label 0. float32, float64 for float64 logits.
        """
        computed = _computed(logits.detach(), labels, top_k, SCALARS_AND_SUPPORT)
        return Reference(**computed, logits=logits.detach())

    @property
    def fields(self) -> frozenset[str]:
        """Names of the fields that are present; `live` counts as "logits"."""
        present = {item.name for item in dataclasses.fields(self) if getattr(self, item.name) is not None}
        return frozenset(present | {"logits"} if "live" in present else present)

    def rows(self, index: slice | Tensor) -> Reference:
        """The reference of some rows; the head of a live reference is shared."""
        changed = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value is not None:
                changed[item.name] = (value[0][index], *value[1:]) if item.name == "live" else value[index]
        return Reference(**changed)

    @torch.no_grad()
    def full_logits(self, rows: slice) -> Tensor:
        """(m, V) raw logits of some rows, from `logits` or `live`. Raises ValueError if both are absent."""
        if self.logits is not None:
            return self.logits[rows]
        if self.live is None:
            raise ValueError(
                f"reference has no logits; present: {', '.join(sorted(self.fields)) or 'none'}; make it live"
            )
        hidden, head_weight, head_bias = self.live
        return torch.nn.functional.linear(hidden[rows], head_weight, head_bias)

    def log_probs(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """(m, V) log-probabilities of some rows over the whole vocabulary, in `dtype`."""
        return self.full_logits(rows).to(dtype).log_softmax(-1)

    @torch.no_grad()
    def filled(self, labels: Tensor, *, top_k: int, fields: frozenset[str] = SCALARS_AND_SUPPORT) -> Reference:
        """This reference with those of `fields` that are absent computed from `logits` or `live`; labels (N,)."""
        absent = fields - self.fields
        return dataclasses.replace(self, **_computed(self.full_logits(slice(None)), labels, top_k, absent))

    def get(self, field: str) -> Tensor:
        """The field, detached. Raises ValueError if it is absent."""
        value = getattr(self, field)
        if value is None:
            raise ValueError(f"reference has no field {field!r}; present: {', '.join(sorted(self.fields)) or 'none'}")
        return value.detach()

    def support(self, top_k: int | None) -> tuple[Tensor, Tensor]:
        """(N, K) ids and log-probabilities of the top_k most probable ids; None: of all that are cached."""
        return self.get("support_ids")[:, :top_k], self.get("support_logprobs")[:, :top_k]


def _computed(logits: Tensor, labels: Tensor, top_k: int, fields: frozenset[str]) -> dict[str, Any]:
    z = logits if logits.dtype == torch.float64 else logits.float()
    vocab_size = z.shape[-1]
    labels = labels.where((labels >= 0) & (labels < vocab_size), torch.zeros_like(labels))
    log_q = z.log_softmax(-1)
    found: dict[str, Any] = {}
    if fields & {"support_ids", "support_logprobs"}:
        found["support_logprobs"], found["support_ids"] = log_q.topk(min(top_k, vocab_size), dim=-1)
    if "label_logprob" in fields:
        found["label_logprob"] = log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    if "label_mass" in fields:
        found["label_mass"] = label_mass(z, labels)
    if "logsumexp" in fields:
        found["logsumexp"] = z.logsumexp(-1)
    if "entropy" in fields:
        found["entropy"] = torch.special.entr(log_q.exp()).sum(-1)
    if fields & {"n1", "n2", "ceil_n1", "ceil_n2"}:
        found["n1"], found["n2"] = window_support(z)
        found["ceil_n1"], found["ceil_n2"] = found["n1"].ceil().long(), found["n2"].ceil().long()
    return found
