"""GEM: pull toward the label, push away from the model's own sharpened distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import Needs, Objective, setting


@dataclass(frozen=True, kw_only=True)
class Gem(Objective):
    """CE(e_y, p) - weight * CE(w, p), w = sg softmax(z / temperature) (TARGET Table 4, LP-SFT C.1; temperature is beta,
    weight is lambda of TARGET B.3).

    variant linear: the papers'. variant logsigmoid: sum_v w_v s_v (log p_v - log p_y) with the detached
    s_v = sigmoid(0.01 (z_v - z_y)) of the published scripts; then CE(e_y, p) is multiplied by sum_v w_v s_v.
    """

    name: ClassVar[str] = "gem"

    temperature: float = setting(0.7, above=0.0)
    weight: float = setting(1.0, low=0.0)
    variant: str = setting("linear", choices=("linear", "logsigmoid"))

    @property
    def needs(self) -> Needs:
        scripts = {"statistic"} if self.variant == "logsigmoid" else set()
        return Needs(student=frozenset({"log_p_label", "expected_log_p"} | scripts))

    def loss(self, student, references, columns, constants):
        label = 1 if self.variant == "linear" else student.statistic(lambda chunk: self._weights(chunk).sum(-1))
        return -label * student.log_p_label + self.weight * student.expected_log_p(self._weights)

    def _weights(self, chunk):
        w = (chunk.logits / self.temperature).softmax(-1)
        if self.variant == "linear":
            return w
        return w * (0.01 * (chunk.logits - chunk.logits.gather(1, chunk.labels.unsqueeze(-1)))).sigmoid()
