"""Devices and bytes that several kinds of stage count alike."""

from __future__ import annotations

from typing import Any

from launch.recipe.platform import Placement


def spread(devices: float, platform: Any, *, cpus: float = 1.0) -> Placement:
    """`devices` over as few nodes as hold them."""
    nodes = max(1, -(-int(devices) // platform.gpus_per_node))
    return Placement(nodes=nodes, gpus_per_node=devices / nodes, cpus=cpus)


def optimizer_bytes(parameters: float) -> float:
    """Bytes of fp32 weights and AdamW's two moments."""
    return 12.0 * parameters


def weight_bytes(parameters: float, dtype: str) -> float:
    """Bytes of a published checkpoint with its tokenizer."""
    return parameters * (2 if dtype == "bfloat16" else 4) + min(4_000_000, parameters)
