"""Distillation split into what it says of the label and of the other tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import setting
from ..needs import FROZEN_SOURCES, Needs
from .sources import SUPPORT, FromReference, times


@dataclass(frozen=True, kw_only=True)
class KdDecomposed(FromReference):
    """-q(y) log p_y - weight * sum over v != y of q(v) log p_v (PriFT D.1, Table 7; weight is beta).

    weight 0 is prift_prob with a teacher and needs q(y) only. estimator topk: the sum runs over the top_k cached ids
    (None: all that are cached), not renormalised.
    """

    name: ClassVar[str] = "kd_decomposed"

    source: str = setting("teacher", choices=FROZEN_SOURCES)
    weight: float = setting(0.5, low=0.0, high=1.0)
    estimator: str = setting("full", choices=("full", "topk"))
    top_k: int | None = setting(None, kind=int, low=1, nullable=True)

    @property
    def needs(self) -> Needs:
        if self.weight == 0:
            return self.reading("label_logprob")
        if self.estimator == "full":
            return self.reading("label_logprob", "logits")
        return self.reading("label_logprob", *SUPPORT, top_k=self.top_k)

    def loss(self, step):
        student, q = step.student, step.reference(self.source)
        label = times(-q.get("label_logprob").exp().to(student.log_p_label.dtype), student.log_p_label)
        if self.weight == 0:
            return label
        if self.estimator == "full":

            def others(chunk):
                return q.log_probs(chunk.rows, chunk.logits.dtype).exp().scatter(1, chunk.labels.unsqueeze(-1), 0)

            return label - self.weight * student.expected_log_p(others)
        ids, log_q = q.support(self.top_k)
        q_others = log_q.exp().masked_fill(ids == student.labels.unsqueeze(-1), 0)
        return label - self.weight * times(q_others, student.log_p(ids)).sum(-1)
