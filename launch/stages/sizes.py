"""Devices and bytes that several kinds of stage count alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from common.errors import ConfigError
from launch.recipe.platform import GivenPlacement, Placement


def spread(devices: float, platform: Any, *, cpus: float = 1.0) -> Placement:
    """`devices` over as few nodes as hold them."""
    nodes = max(1, -(-int(devices) // platform.gpus_per_node))
    return Placement(nodes=nodes, gpus_per_node=devices / nodes, cpus=cpus)


def engines(count: int, platform: Any) -> Placement:
    """The devices of `count` vLLM engines.

    On the CPU platform an engine computes on one of the `platform.threads` cores of a device and takes that share of
    it: stages that sample run side by side there.
    """
    return spread(count, platform) if platform.name != "cpu" else Placement(gpus_per_node=count / platform.threads)


def more_processes(field: str, given: int, platform: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """`field` with twice as many processes, and so on, as far as the cluster has devices (platform gpu)."""
    devices = platform["nodes"] * platform["gpus_per_node"] if platform["name"] == "gpu" else 0
    while 2 * given <= devices:
        given *= 2
        yield field, given


def placed(derived: Placement, given: GivenPlacement | None, kind: str, platform: str) -> Placement:
    """The placement `derived` from processes and replicas, with the fields that the recipe's `given` names.

    Other nodes alone spread the same devices. Raises ConfigError where the placement has fewer devices than the stage's
    processes, which on platform gpu each take one.
    """
    if given is None:
        return derived
    named = given.model_dump(exclude_none=True)
    wanted = derived.nodes * derived.gpus_per_node
    if "nodes" in named and "gpus_per_node" not in named:
        named["gpus_per_node"] = wanted / named["nodes"]
    found = derived.model_copy(update=named)
    if platform == "gpu" and found.nodes * found.gpus_per_node < wanted and wanted >= 1:
        raise ConfigError(
            f"platform.placement.{kind}: {found.nodes} x {found.gpus_per_node:g} devices, but its processes take "
            f"{wanted:g}; leave nodes and gpus_per_node out, or lower the stage's processes"
        )
    return found


def optimizer_bytes(parameters: float) -> float:
    """Bytes of fp32 weights and AdamW's two moments."""
    return 12.0 * parameters


def weight_bytes(parameters: float, dtype: str) -> float:
    """Bytes of a published checkpoint with its tokenizer."""
    return parameters * (2 if dtype == "bfloat16" else 4) + min(4_000_000, parameters)
