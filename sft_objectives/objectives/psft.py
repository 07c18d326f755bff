"""Proximal SFT: stop where the label has gained enough over an old policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..contract import Needs, Objective, setting


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
        fields = frozenset({"label_logprob"})
        if self.inner_updates == 0:
            return Needs(references={"base": fields})
        return Needs(references={"old": fields}, state="old_policy", inner_updates=self.inner_updates)

    def loss(self, student, references, columns, constants):
        return -self._log_ratio(student, references).clamp(max=math.log1p(self.clip)).exp()

    def diagnostics(self, student, references, columns, constants):
        clipped = self._log_ratio(student, references).detach() > math.log1p(self.clip)
        return {"clipped": clipped.to(student.log_p_label.dtype)}

    def _log_ratio(self, student, references):
        old = references["old" if self.inner_updates else "base"].get("label_logprob")
        return student.log_p_label - old
