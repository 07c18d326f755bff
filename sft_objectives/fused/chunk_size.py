"""How many rows of logits exist at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..contract import Objective

ROWS_OF_GPU = 8192
"""Fewer leave processors of a GPU idle: the products with hidden states have one tile for 128 rows and 256 columns."""


def fixed_chunk_size(objective: Objective, head_weight: Tensor) -> int:
    """Rows of a chunk as `default_chunk_size`, but by the device's whole memory: the same in every call of a run."""
    vocab_size, width = head_weight.shape
    size = _preferred_chunk_size(objective, width, head_weight.device)
    while size > 16 and size * vocab_size * 4 > _total_bytes(head_weight.device) / 16:
        size //= 2
    return size


def _preferred_chunk_size(objective: Objective, width: int, device: torch.device) -> int:
    on_cpu = 2 * min(max(2 ** math.ceil(math.log2(width)), 256), 1024)
    size = ROWS_OF_GPU if device.type == "cuda" else on_cpu
    # a reference's whole distribution takes three more buffers of a chunk's size
    return size // 4 if objective.needs.live else size


def default_chunk_size(objective: Objective, hidden: Tensor, vocab_size: int, trains_head: bool) -> int:
    """Rows of a chunk: a power of two near 2 D, from 512 to 2048, 8192 on a GPU; at most what a quarter of the free
    memory holds; a quarter of that where the objective reads a reference's whole distribution.

    From about D rows on the products dominate the traffic of accumulating the (V, D) gradient. The gradient itself is
    set aside before memory is counted.
    """
    width = hidden.shape[1]
    size = _preferred_chunk_size(objective, width, hidden.device)
    value_bytes = 8 if hidden.dtype == torch.float64 else 4
    copies = 4 if objective.needs.live else 1
    row_bytes = vocab_size * (copies * value_bytes + (hidden.element_size() if hidden.dtype == torch.bfloat16 else 0))
    free = _free_bytes(hidden.device) - (2 * vocab_size * width * value_bytes if trains_head else 0)
    while size > 16 and size * row_bytes > free / 4:
        size //= 2
    return size


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    import psutil

    return psutil.virtual_memory().available


def _total_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    import psutil

    return psutil.virtual_memory().total
