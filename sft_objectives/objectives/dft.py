"""DFT: weight by the label's probability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .weighted import TokenWeighted

if TYPE_CHECKING:
    from torch import Tensor

    from ..contract import BatchConstants
    from .weighted import Statistics


@dataclass(frozen=True, kw_only=True)
class Dft(TokenWeighted):
    """-sg(p_y) log p_y (PriFT Table 1; TARGET Table 4 and eq. 14); the p-loss of TARGET."""

    name: ClassVar[str] = "dft"

    def weight(self, statistics: Statistics, columns: Mapping[str, Tensor], constants: BatchConstants) -> Tensor:
        return statistics.log_p_label.exp()
