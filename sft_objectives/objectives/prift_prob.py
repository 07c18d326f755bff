"""PriFT-prob: weight by the pretrained model's probability of the label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..contract import setting
from ..needs import SOURCES
from .dft import Dft


@dataclass(frozen=True, kw_only=True)
class PriftProb(Dft):
    """-q(y) log p_y with q the pre-SFT checkpoint (PriFT eq. 2): DFT's rule on another source."""

    name: ClassVar[str] = "prift_prob"

    source: str = setting("base", choices=SOURCES)
