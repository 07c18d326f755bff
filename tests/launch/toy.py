"""Hand-made plans over toy stages, artifacts and drivers."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.files import write_json
from common.processes import start_time
from launch.fingerprint import fingerprint
from launch.graph.plan import Branch, Input, Plan, Stage
from launch.recipe.model import Model
from launch.recipe.platform import Platform
from launch.recipe.recipe import Recipe
from launch.recipe.run import Run
from launch.store import Record, Store
from launch.store.leases import Heartbeat
from launch.store.records import host

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
    mendable: bool = False,
    models: dict[str, dict[str, str | None]] | None = None,
    **toy: Any,
) -> Stage:
    """A stage that calls toy_stages.<function> with settings.toy."""
    settings = {"toy": toy, "platform": {**PLATFORM, **(platform or {})}, **(sections or {})}
    if kind == "generate":
        settings["held_out"] = False
    if kind == "rl":
        settings["rl"] = {"warm": False, "pause_at": None, **settings.get("rl", {})}
    links = {}
    for name, given in (inputs or {}).items():
        source, select = given if isinstance(given, tuple) else (given, "")
        links[name] = Input(stage=source.fingerprint, select=select)
    identity = {"toy": toy, "function": function, "label": label}
    digest = fingerprint(
        {"kind": kind, "identity": identity, "inputs": {n: [i.stage, i.select] for n, i in links.items()}}
    )
    devices = {"nodes": 1, "gpus_per_node": 0, "cpus": 0.5, "strategy": "PACK", **(placement or {})}
    return Stage(
        kind, label, f"toy_stages:{function}", settings, identity, 1, links, digest, devices, ("toy",),
        settings_type="toy_stages:ToySettings", mendable=mendable, models=models or {},
    )  # fmt: skip


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


def published(store: Store, stage: Stage, run: str = "run", text: str = "hello") -> Record:
    """Publishes two files as the artifact of a stage."""
    assert store.acquire(stage, run)
    attempt = store.begin(stage)
    folder = store.temporary(stage, attempt)
    (folder / "deep").mkdir()
    (folder / "deep" / "a.txt").write_text(text)
    (folder / "timings.jsonl").write_text(str(time.time()))
    record = store.publish(stage, attempt, run, started=1.0, seconds=2.0, peak_memory_bytes=3)
    store.release(stage, run)
    return record


def signed_on(store: Store, run: str, **changes: Any) -> None:
    """A driver's heartbeat file as another process would write it."""
    store.drivers.mkdir(parents=True, exist_ok=True)
    driver = {"run": run, "recipe": "toy", "host": host(), "pid": os.getpid(), "started": start_time(os.getpid())}
    write_json(store.drivers / f"{run}.json", {**driver, "counter": 0, "temporary": "", **changes})


@contextlib.contextmanager
def every_state(root: Path) -> Iterator[Plan]:
    """A plan with one stage in each state, while its driver lives."""
    done, running, stale = steps("done"), steps("running"), steps("stale")
    failed = steps("failed")
    blocked, waiting = (
        steps("blocked", "rl", inputs={"model": failed}),
        steps("waiting", "rl", inputs={"model": running}),
    )
    found = plan(root, done, running, stale, failed, blocked, waiting)
    store = Store(root)
    with Heartbeat(store, "toy") as beat:
        store.acquire(done, beat.run)
        (store.temporary(done, store.begin(done)) / "a.txt").write_text("a")
        store.publish(done, 1, beat.run, started=0.0, seconds=75.0, peak_memory_bytes=1)
        store.release(done, beat.run)
        store.acquire(running, beat.run)
        store.begin(running)
        progress = {"attempt": 1, "counter": 9, "done": 25, "total": 100, "seconds": 10.0, "metrics": {"loss": 1.5}}
        write_json(store.logs(running) / "progress.json", progress)
        store.acquire(stale, beat.run)
        write_json(store.lease(stale), {"run": "gone", "stage": stale.fingerprint})
        store.begin(failed)
        store.finish(failed, 1, {"outcome": "config", "message": "row 7", "seconds": 1.0})
        yield found
