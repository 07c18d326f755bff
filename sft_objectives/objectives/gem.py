"""GEM: pull toward the label, push away from the model's own sharpened distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import Objective, setting
from .sources import times


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

    def loss(self, step):
        student = step.student
        if self.variant == "linear":
            return -student.log_p_label + self.weight * student.tempered_log_p(self.temperature)
        import torch

        sums = {}

        def weights(chunk):
            w = times(self._sharpened(chunk), _agreement(chunk))
            sums[chunk.rows.start] = w.sum(-1)
            return w

        expected = student.expected_log_p(weights)
        return times(-torch.cat(list(sums.values())), student.log_p_label) + self.weight * expected

    def _sharpened(self, chunk):
        return chunk.p(self.temperature)


def _agreement(chunk):
    """(m, V) s_v."""
    return chunk.logits.sub(chunk.logits.gather(1, chunk.labels.unsqueeze(-1))).mul_(0.01).sigmoid_()
