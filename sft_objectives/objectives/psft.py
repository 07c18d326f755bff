"""Proximal SFT: stop where the label has gained enough over an old policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..contract import Objective, setting
from ..needs import Needs, OldPolicy
from .sources import log_ratio


@dataclass(frozen=True, kw_only=True)
class Psft(Objective):
    """-min(r, clip(r, 1 - clip, 1 + clip)), r = p_y / pi_old(y) (TARGET Table 4; clip is epsilon).

    Equal to -min(r, 1 + clip): the lower bound never binds. It is evaluated on log r, so that r cannot overflow.
    inner_updates: optimizer steps between two refreshes of pi_old; 0: pi_old is the base model.
    """

    name: ClassVar[str] = "psft"

    clip: float = setting(0.2, above=0.0)
    inner_updates: int = setting(4, low=0)

    @property
    def needs(self) -> Needs:
        if self.inner_updates == 0:
            return Needs.reading("base", "label_logprob")
        return Needs.reading("old", "label_logprob") | Needs(state=OldPolicy(self.inner_updates))

    def loss(self, step):
        old = step.reference("old" if self.inner_updates else "base")
        log_r, bound = log_ratio(step.student.log_p_label, old.get("label_logprob")), math.log1p(self.clip)
        step.log("clipped", (log_r.detach() > bound).to(step.student.log_p_label.dtype))
        return -log_r.clamp(max=bound).exp()
