"""Standard supervised fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..contract import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from ..contract import BatchConstants
    from ..reference import Reference
    from ..student import Student


@dataclass(frozen=True, kw_only=True)
class Sft(Objective):
    """-log p_y (PriFT Table 1, TARGET Table 4)."""

    name: ClassVar[str] = "sft"

    def loss(
        self,
        student: Student,
        references: Mapping[str, Reference],
        columns: Mapping[str, Tensor],
        constants: BatchConstants,
    ) -> Tensor:
        return -student.log_p_label
