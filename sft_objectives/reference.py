"""What is known of a frozen distribution (base, teacher, checkpoint, moving average, old policy) at each position."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.distributions import label_mass, window_support

FILL_BYTES = 2**28
"""Memory of the logits that fields are computed from at a time, with one copy."""

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
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.nn.functional.linear(hidden[rows], head_weight, head_bias)

    @torch.no_grad()
    def log_probs(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """(m, V) log-probabilities of some rows over the whole vocabulary, in `dtype`."""
        return self.full_logits(rows).to(dtype).log_softmax(-1)

    @torch.no_grad()
    def filled(self, labels: Tensor, *, top_k: int, fields: frozenset[str] = SCALARS_AND_SUPPORT) -> Reference:
        """This reference with those of `fields` that are absent computed from `logits` or `live`; labels (N,).

        Works on a few rows at a time: the logits of a live reference never exist as a whole.
        """
        absent = fields - self.fields - {"logits"}
        if not absent:
            return self
        width = self.whole_width
        size = max(FILL_BYTES // (8 * width), 1) if width else len(labels)
        parts = []
        for start in range(0, max(len(labels), 1), max(size, 1)):
            rows = slice(start, start + size)
            parts.append(_computed(self.full_logits(rows), labels[rows], top_k, absent))
        return dataclasses.replace(self, **{name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    @property
    def whole_width(self) -> int | None:
        """Ids of the whole distribution, the padding of its head included; None if it is absent."""
        if self.logits is not None:
            return self.logits.shape[-1]
        return None if self.live is None else len(self.live[1])

    @torch.no_grad()
    def fitted(self, vocab_size: int) -> Reference:
        """This reference over the `vocab_size` ids of the student, where its own head is padded to another width.

        Ids beyond the student's get no probability: logits and live heads are cut there, and what is left is normalised
        anew; ids that only the student has get none either. What had been computed over another width is dropped, to be
        computed anew. Cached ids beyond the student's become padding, and their mass goes to the others in proportion.
        """
        width = self.whole_width
        if width is not None and width != vocab_size:
            if self.logits is not None:
                missing, cut = (0, vocab_size - width), self.logits[:, :vocab_size]
                changed = Reference(logits=cut if width > vocab_size else F.pad(cut, missing, value=-torch.inf))
            else:
                assert self.live is not None
                changed = Reference(live=head_of_width(self.live, vocab_size))
            if self.support_ids is None:
                return changed
            ids = {"support_ids", "support_logprobs"}
            return changed.filled(self.support_ids[:, 0], top_k=self.support_ids.shape[-1], fields=frozenset(ids))
        ids, log_q = self.support_ids, self.support_logprobs
        if ids is None or log_q is None or not bool((ids >= vocab_size).any()):
            return self
        beyond = ids >= vocab_size
        kept = torch.log1p(-log_q.exp().masked_fill(~beyond, 0).sum(-1, keepdim=True).clamp(max=1 - 1e-6))
        order = beyond.to(torch.int8).argsort(dim=-1, stable=True)
        changed = {
            "support_ids": ids.masked_fill(beyond, 0).gather(-1, order),
            "support_logprobs": (log_q - kept).masked_fill(beyond, -torch.inf).gather(-1, order),
        }
        if self.label_logprob is not None:
            changed["label_logprob"] = self.label_logprob - kept.squeeze(-1)
        return dataclasses.replace(self, **changed)

    def get(self, field: str) -> Tensor:
        """The field, detached. Raises ValueError if it is absent."""
        value = getattr(self, field)
        if value is None:
            raise ValueError(f"reference has no field {field!r}; present: {', '.join(sorted(self.fields)) or 'none'}")
        return value.detach()

    def support(self, top_k: int | None) -> tuple[Tensor, Tensor]:
        """(N, K) ids and log-probabilities of the top_k most probable ids; None: of all that are cached."""
        return self.get("support_ids")[:, :top_k], self.get("support_logprobs")[:, :top_k]


def head_of_width(live: tuple[Tensor, Tensor, Tensor | None], vocab_size: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """A live reference whose head has `vocab_size` ids: a shared slice of a wider one; of a narrower one a copy, whose
    ids beyond have probability 0."""
    hidden, weight, bias = live
    missing = vocab_size - len(weight)
    if missing <= 0:
        return hidden, weight[:vocab_size], None if bias is None else bias[:vocab_size]
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return hidden, F.pad(weight, (0, 0, 0, missing)), F.pad(bias, (0, missing), value=-torch.inf)


def _computed(logits: Tensor, labels: Tensor, top_k: int, fields: frozenset[str]) -> dict[str, Any]:
    z = logits if logits.dtype == torch.float64 else logits.float()
    vocab_size = z.shape[-1]
    labels = labels.where((labels >= 0) & (labels < vocab_size), torch.zeros_like(labels))
    label = labels.unsqueeze(-1)
    found: dict[str, Any] = {}
    log_q = torch.empty(0)
    if fields & {"support_ids", "support_logprobs", "entropy"}:
        log_q = z.log_softmax(-1)
    if fields & {"support_ids", "support_logprobs"}:
        found["support_logprobs"], found["support_ids"] = log_q.topk(min(top_k, vocab_size), dim=-1)
    if "label_logprob" in fields:
        if log_q.numel():
            found["label_logprob"] = log_q.gather(-1, label).squeeze(-1)
        else:  # one id needs no log-softmax of the others
            shifted = z - z.amax(-1, keepdim=True)
            found["label_logprob"] = shifted.gather(-1, label).squeeze(-1) - shifted.logsumexp(-1)
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
