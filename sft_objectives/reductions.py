"""Reductions that are exact where a probability is 0, and what a CPU knows of its values without waiting."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def surely(flags: Tensor) -> bool:
    """Whether all are true, where that is known without waiting for a device: always False on a GPU."""
    return flags.device.type == "cpu" and bool(flags.numpy().all())


def places_of(flags: Tensor) -> Tensor | None:
    """(K,) int64 places of the true ones among (n,) flags; None on a GPU, where counting them would wait for it."""
    return torch.from_numpy(np.flatnonzero(flags.numpy())) if flags.device.type == "cpu" else None


def dot(weights: Tensor, log_p: Tensor) -> Tensor:
    """(m,) sum over v of weights_v log_p_v of two (m, V) tensors without gradient, in their dtype whatever autocast
    says; an id of weight 0 counts 0 also where its log_p is -inf."""
    if log_p.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):  # vecdot is a matrix product
            found = torch.linalg.vecdot(weights, log_p)
        if surely(found.isfinite()):
            return found
    return (weights * log_p).masked_fill_(weights == 0, 0).sum(-1)
