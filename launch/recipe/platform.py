"""Devices: of the cluster and of one stage."""

from __future__ import annotations

from typing import Literal

from launch.recipe.section import Section, runtime, setting


class Placement(Section):
    """Devices of one stage: a Ray placement group of `nodes` bundles."""

    nodes: int = runtime(1, "nodes", gt=0)
    gpus_per_node: float = runtime(0, "devices on each; a fraction for small stages", ge=0)
    cpus: float = runtime(1, "cores on each", gt=0)
    strategy: Literal["STRICT_PACK", "PACK", "SPREAD", "STRICT_SPREAD"] = runtime("PACK", "Ray's strategy")


class GivenPlacement(Section):
    """What a recipe says of a stage's placement; the rest is derived from the stage's processes and replicas."""

    nodes: int | None = runtime(None, "nodes", gt=0)
    gpus_per_node: float | None = runtime(None, "devices on each; a fraction for small stages", ge=0)
    cpus: float | None = runtime(None, "cores on each", gt=0)
    strategy: Literal["STRICT_PACK", "PACK", "SPREAD", "STRICT_SPREAD"] | None = runtime(None, "Ray's strategy")


class Platform(Section):
    name: Literal["cpu", "gpu"] = setting("gpu", "what the models run on")
    threads: int = setting(2, "CPU threads of a stage's own tensor code; sums depend on it", gt=0)
    env: dict[str, str] = runtime({}, "environment of every stage")
    nodes: int = runtime(1, "nodes of the cluster", gt=0)
    gpus_per_node: int = runtime(1, "devices of a node; logical ones on the CPU platform", gt=0)
    device_memory: float = runtime(80.0, "GB of one device, for what is refused when planned", gt=0)
    placement: dict[str, GivenPlacement] = runtime(
        {}, "stage -> devices; the rest is derived from processes and replicas"
    )
