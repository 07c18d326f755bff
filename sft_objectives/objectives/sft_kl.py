"""SFT with a KL penalty toward a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .divergence import Anchored


@dataclass(frozen=True, kw_only=True)
class SftKl(Anchored):
    """-log p_y + weight * KL(q || p), q the base model (TARGET Table 4; weight is lambda)."""

    name: ClassVar[str] = "sft_kl"

    def label_term(self, log_p_label):
        return -log_p_label
