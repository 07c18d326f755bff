"""TALR: weight by a power of the label's probability that adapts to the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import BatchConstants, setting
from ..needs import BatchNeeds, Needs
from .batch import sequence_means, temperature_of
from .weighted import TokenWeighted


@dataclass(frozen=True, kw_only=True)
class Talr(TokenWeighted):
    """m_t = max(p_y^(1 / temperature), w_min) (TALR Alg. 1; temperature is tau).

    temperature None: the median over the sequences of the global batch of their mean loss -log p_y (TALR D.2), of the
    same source as the weights; a number is fixed (1 is the ablation of D.3). normalize: divide by the sum of the
    weights of the global batch, which with w_min 0 is the simplex form of 4.1.
    """

    name: ClassVar[str] = "talr"

    temperature: float | None = setting(None, kind=float, above=0.0, nullable=True)
    w_min: float = setting(0.01, low=0.0, high=1.0)
    normalize: bool = setting(False)

    @property
    def needs(self) -> Needs:
        if self.temperature is not None and not self.normalize:
            return super().needs
        batch = BatchNeeds(student=self.source == "online", sequences=self.temperature is None)
        return super().needs | Needs(batch=batch)

    def batch_constants(self, token_scalars, reduce):
        mask = token_scalars["mask"].bool()
        log_p = reduce(token_scalars["log_p_label"][mask]).double()
        temperature = self.temperature
        if temperature is None:
            temperature = temperature_of(sequence_means(-log_p, reduce(token_scalars["sequence"][mask]))[1])
        normalizer = float(self._weight(log_p, temperature).sum()) if self.normalize else None
        return BatchConstants(values={"temperature": temperature}, normalizer=normalizer)

    def weight(self, q, step):
        return self._weight(q.log_p_label, self.temperature or step.constant("temperature"))

    def _weight(self, log_p, temperature):
        return (log_p / temperature).exp().clamp(min=self.w_min)
