"""Supervised fine-tuning objectives: the mathematics, written once against statistics of the student.

    objective = sft_objectives.load("eaft", source="base")
    losses = sft_objectives.token_losses(objective, logits, labels, mask=mask, reference=base)

Importing this package imports no torch; settings and needs of an objective are readable without it.
`sft_objectives.contract` documents what an integrator must provide.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .contract import BatchConstants, Objective, Step, setting
from .needs import BatchNeeds, Ema, Needs, OldPolicy, ReferenceNeeds
from .registry import load, names

if TYPE_CHECKING:
    from .fused.loss import fused_loss
    from .losses import token_losses
    from .reference import Reference

_WITH_TORCH = {"Reference": ".reference", "fused_loss": ".fused.loss", "token_losses": ".losses"}

__all__ = [
    "BatchConstants", "BatchNeeds", "Ema", "Needs", "Objective", "OldPolicy", "Reference", "ReferenceNeeds", "Step",
    "fused_loss", "load", "names", "setting", "token_losses",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        return getattr(importlib.import_module(_WITH_TORCH[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
