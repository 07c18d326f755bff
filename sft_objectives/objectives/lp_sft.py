"""LP-SFT: keep the base model's preferences among its plausible alternatives to the label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import setting
from ..needs import Needs
from .divergence import full_divergence
from .sources import SUPPORT, FromReference


@dataclass(frozen=True, kw_only=True)
class LpSft(FromReference):
    """-log p_y + weight * KL(q_A || p_A), both renormalised on the preservation set A (LP-SFT eq. 13-18; weight is mu).

    A is built from the base's k most probable ids, k = min(ceil(N1), top_k) (top_k is K_max), without the label.
    schedule fixed: k = top_k (Table 18). Table 17: remove_label, normalize (false: sum over A of q ln(q/p) with
    full-vocabulary probabilities) and scope full (the whole vocabulary but the label; needs a live reference).
    rounding: of N1. divergence ce: cross-entropy in place of KL, the same gradient. An id that is left alone in A is
    joined by the next one (eq. 15), of all that are cached or, following top_k, of the first top_k alone, as in the
    published code, where it is dropped if none follows.
    """

    name: ClassVar[str] = "lp_sft"

    weight: float = setting(1.0, low=0.0)
    top_k: int = setting(10, low=1)
    schedule: str = setting("n1", choices=("n1", "fixed"))
    remove_label: bool = setting(True)
    normalize: bool = setting(True)
    scope: str = setting("local", choices=("local", "full"))
    rounding: str = setting("ceil", choices=("ceil", "round"))
    divergence: str = setting("kl", choices=("kl", "ce"))
    following: str = setting("any", choices=("any", "top_k"))

    @property
    def needs(self) -> Needs:
        if self.scope == "full":
            return self.reading("logits")
        n1 = "ceil_n1" if self.rounding == "ceil" else "n1"
        return self.reading(*SUPPORT, *([n1] if self.schedule == "n1" else []), top_k=self.width)

    @property
    def width(self) -> int:
        """Ids per position: |S'| = 1 adds the next one, which can have rank 3."""
        return self.top_k if self.following == "top_k" else max(self.top_k, 3)

    def loss(self, step):
        divergence = self._full(step) if self.scope == "full" else self._local(step)
        return -step.student.log_p_label + self.weight * divergence

    def preservation_set(self, reference, labels):
        """(n, K) bool: which cached ids form A (eq. 13-15). Without label removal S' is S itself."""
        import torch

        ids, log_q = reference.support(None)
        rank = torch.arange(ids.shape[-1], device=ids.device)
        if self.schedule == "fixed":
            k = torch.full_like(labels, self.top_k)
        else:
            k = reference.get("ceil_n1") if self.rounding == "ceil" else reference.get("n1").round().long()
            k = k.clamp(max=self.top_k)
        exists = log_q > -torch.inf
        label = ids == labels.unsqueeze(-1)
        selected = (rank < k.unsqueeze(-1)) & exists
        candidate = ~selected & ~label & exists
        if self.following == "top_k":
            candidate = candidate & (rank < self.top_k)
        kept = selected & ~label if self.remove_label else selected
        following = candidate & (candidate.cumsum(-1) == 1)
        kept = kept | (following & (kept.sum(-1, keepdim=True) == 1))
        return kept & (kept.sum(-1, keepdim=True) > 1) if self.following == "top_k" else kept

    def _local(self, step):
        reference = step.reference(self.source)
        ids, log_q = (of_id[:, : self.width] for of_id in reference.support(None))
        preserved = self.preservation_set(reference, step.student.labels)
        step.log("empty_set", (~preserved.any(-1)).float())
        preserved = preserved[:, : self.width]
        log_p = step.student.log_p(ids)
        log_q = log_q.to(log_p.dtype)
        if self.normalize:
            # also where the student rules out every id of the set: nothing is left to compare
            empty = ~(preserved & ~log_p.detach().isneginf()).any(-1, keepdim=True)
            preserved = preserved & ~empty
            log_p = log_p.masked_fill(~preserved, -float("inf")).masked_fill(empty, 0).log_softmax(-1)
            log_q = log_q.masked_fill(~preserved, -float("inf")).masked_fill(empty, 0).log_softmax(-1)
        log_p = log_p.masked_fill(~preserved, 0)
        log_q = log_q.masked_fill(~preserved, 0)
        q = log_q.exp().masked_fill(~preserved, 0)
        entropy = -(q * log_q).sum(-1) if self.divergence == "kl" else 0
        return -(q * log_p).sum(-1) - entropy

    def _full(self, step):
        student, reference = step.student, step.reference(self.source)

        def log_q(chunk):
            log_q = reference.log_probs(chunk.rows, chunk.logits.dtype)
            if self.remove_label:
                log_q = log_q.scatter(-1, chunk.labels.unsqueeze(-1), -float("inf"))
            return log_q.log_softmax(-1) if self.normalize else log_q

        divergence = full_divergence(student, log_q, entropy=self.divergence == "kl")
        if self.normalize and self.remove_label:
            # log of p renormalised without the label is log p_v - log(1 - p_y)
            divergence = divergence + student.log_p_outside(student.labels.unsqueeze(-1))
        return divergence
