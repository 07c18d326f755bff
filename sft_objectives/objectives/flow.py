"""FLOW: weight sequences by how well the base model already knows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import BatchConstants, setting
from ..needs import FROZEN_SOURCES, BatchNeeds, Needs, ReferenceNeeds
from .batch import of_sequence, sequence_means, temperature_of
from .weighted import TokenWeighted


@dataclass(frozen=True, kw_only=True)
class Flow(TokenWeighted):
    """m = exp(-L / temperature) / mean_weight, L the sequence's mean loss under the base model (TALR 4.2, D.3).

    temperature: None is the median of L over the training set; mean_weight: None is the mean of exp(-L / temperature)
    over the sequences of the training set. TALR only says static and per sequence; the form is our reading. median: of
    an even number of losses, the lower of the two middle ones or their mean, as in FLOW's published code, which does
    not divide by the mean weight either (mean_weight 1).
    """

    name: ClassVar[str] = "flow"

    source: str = setting("base", choices=FROZEN_SOURCES)
    temperature: float | None = setting(None, kind=float, above=0.0, nullable=True)
    mean_weight: float | None = setting(None, kind=float, above=0.0, nullable=True)
    median: str = setting("lower", choices=("lower", "mean"))

    @property
    def highest_weight(self) -> float:
        return float("inf") if self.mean_weight is None else max(1.0, 1 / self.mean_weight)

    @property
    def needs(self) -> Needs:
        fixed = self.temperature is not None and self.mean_weight is not None
        dataset = None if fixed else ReferenceNeeds(frozenset({"label_logprob"}))
        return super().needs | Needs(dataset=dataset, batch=BatchNeeds(sequences=True))

    def condensed(self, cache_scalars):
        mask = cache_scalars["mask"].bool()
        ids, loss = sequence_means(-cache_scalars["label_logprob"][mask], cache_scalars["sequence"][mask])
        return {"label_logprob": -loss, "mask": mask.new_ones(len(ids)), "sequence": ids}

    def dataset_constants(self, cache_scalars):
        mask = cache_scalars["mask"].bool()
        loss = sequence_means(-cache_scalars["label_logprob"][mask], cache_scalars["sequence"][mask])[1]
        temperature = temperature_of(loss, self.median) if self.temperature is None else self.temperature
        return {"temperature": temperature, "mean_weight": float((-loss / temperature).exp().mean())}

    def batch_constants(self, token_scalars, reduce):
        mask, sequence = token_scalars["mask"].bool(), token_scalars["sequence"]
        ids, loss = sequence_means(reduce(-token_scalars["log_p_label"][mask]), reduce(sequence[mask]))
        return BatchConstants(tokens={"sequence_loss": of_sequence(ids, loss, sequence)})

    def weight(self, q, step):
        temperature = self.temperature or step.constant("temperature")
        mean_weight = self.mean_weight or step.constant("mean_weight")
        return (-step.constant("sequence_loss") / temperature).exp() / mean_weight
