"""Hand-made plans over toy stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.fingerprint import fingerprint
from launch.plan import Branch, Input, Plan, Stage
from launch.schema import Model, Platform, Recipe, Run

PLATFORM = {"name": "cpu", "threads": 1, "env": {}, "nodes": 1, "gpus_per_node": 1, "placement": {}}


def stage(
    function: str,
    label: str = "toy",
    kind: str = "sft",
    *,
    inputs: dict[str, Stage | tuple[Stage, str]] | None = None,
    placement: dict[str, Any] | None = None,
    sections: dict[str, Any] | None = None,
    platform: dict[str, Any] | None = None,
    **toy: Any,
) -> Stage:
    """A stage that calls toy_stages.<function> with settings.toy."""
    settings = {"toy": toy, "platform": {**PLATFORM, **(platform or {})}, **(sections or {})}
    links = {}
    for name, given in (inputs or {}).items():
        source, select = given if isinstance(given, tuple) else (given, "")
        links[name] = Input(stage=source.fingerprint, select=select)
    identity = {"toy": toy, "function": function, "label": label}
    mark = fingerprint(
        {"kind": kind, "identity": identity, "inputs": {n: [i.stage, i.select] for n, i in links.items()}}
    )
    devices = {"nodes": 1, "gpus_per_node": 0, "cpus": 0.5, "strategy": "PACK", **(placement or {})}
    return Stage(kind, label, f"toy_stages:{function}", settings, identity, 1, links, mark, devices, ("toy",))


def steps(
    label: str = "toy", kind: str = "sft", *, count: int = 3, sleep: float = 0.0, seed: int = 0, **rest: Any
) -> Stage:
    return stage("steps", label, kind, steps=count, sleep=sleep, seed=seed, **rest)


def plan(root: Path, *stages: Stage, gpus: int = 1, nodes: int = 1, **limits: Any) -> Plan:
    """A plan of one branch; `limits` are fields of the recipe's run section."""
    run = Run(root=str(root), **{"backoff": 0.0, "grace": 2.0, **limits})
    recipe = Recipe(
        name="toy", model=Model(path="none"), platform=Platform(name="cpu", gpus_per_node=gpus, nodes=nodes), run=run
    )
    roles = {f"{s.kind}:{s.label}": s.fingerprint for s in stages}
    return Plan("toy", [Branch("toy", (), recipe, roles)], {s.fingerprint: s for s in stages})
