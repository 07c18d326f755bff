"""Reads every row of a plan's data in this process, without a device: what is wrong with it is said before training."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.files import read_json
from launch import interrupts, stages
from launch.execution.child import load_call
from launch.fingerprint import MEMORY
from launch.graph.plan import Plan, Stage
from launch.store import Store, StoreError
from launch.store.leases import Heartbeat

SAID_EVERY = 10.0  # seconds between two lines of progress


def read_rows(plan: Plan, *, keep: bool) -> int:
    """Runs the stages that only read rows; prints what they counted, and every mistake in one line.

    Args:
        keep: publish what they make, so that `run` finds it; else it is thrown away.

    Returns:
        0, or 2 where some data is wrong.
    """
    readers = {kind.name for kind in stages.in_order(plan.own_stages) if kind.reads_rows}
    wanted = [stage for stage in plan.stages.values() if stage.kind in readers]
    store = Store(plan.root)
    os.environ.update(plan.branches[0].recipe.platform.env)
    interrupts.raise_again()
    there: dict[str, Path] = {}
    wrong = 0
    with Kept(store, plan.recipe) if keep else _Thrown(store) as place:
        for stage in wanted:
            if store.has(stage):
                there[stage.fingerprint] = store.directory(stage)
                print(f"{stage.name}: there already, {_counted(there[stage.fingerprint])}")
                continue
            if any(given.stage is not None and given.stage not in there for given in stage.inputs.values()):
                print(f"{stage.name}: not read, since what it reads is wrong")
                continue
            try:
                there[stage.fingerprint] = place.make(
                    stage, lambda out, scratch, one=stage: call_stage(one, there, out, scratch, store)
                )
            except ConfigError as error:
                print(f"error: {stage.name}: {error}", file=sys.stderr)
                wrong += 1
                continue
            print(f"{stage.name}: {_counted(there[stage.fingerprint])}")
    print(f"{len(there)} of {len(wanted)} parts of the data are fine")
    return 2 if wrong else 0


Work = Callable[[Path, Path], None]


class _Thrown:
    """Makes artifacts in a temporary directory."""

    def __init__(self, store: Store) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rows-")

    def __enter__(self) -> _Thrown:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def make(self, stage: Stage, work: Work) -> Path:
        output = Path(self._folder.name, stage.fingerprint)
        scratch = output.with_suffix(".scratch")
        output.mkdir()
        scratch.mkdir()
        work(output, scratch)
        return output


class Kept:
    """Makes artifacts in the store, in this process, as a driver does."""

    def __init__(self, store: Store, recipe: str) -> None:
        self._store, self._beat = store, Heartbeat(store, recipe)

    def __enter__(self) -> Kept:
        self._beat.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._beat.__exit__(*raised)

    def make(self, stage: Stage, work: Work) -> Path:
        store, run = self._store, self._beat.run
        if not store.acquire(stage, run):
            raise StoreError(f"{stage.name} is being made by another run; wait for it, or `stop` it")
        attempt, started, begun = store.begin(stage), time.time(), time.monotonic()
        try:
            try:
                work(store.temporary(stage, attempt), store.scratch(stage))
            except BaseException as error:
                outcome = "config" if isinstance(error, ConfigError) else "stopped"
                seconds = time.monotonic() - begun
                store.finish(stage, attempt, {"outcome": outcome, "message": str(error), "seconds": seconds})
                raise
            seconds = time.monotonic() - begun
            record = store.publish(stage, attempt, run, started=started, seconds=seconds, peak_memory_bytes=0)
            store.finish(stage, attempt, {"outcome": "ok", "message": "", "seconds": seconds, "bytes": record.bytes})
        finally:
            store.release(stage, run)
        return store.directory(stage)


def call_stage(stage: Stage, there: Mapping[str, Path], output: Path, scratch: Path, store: Store) -> None:
    """Calls the stage's function as a child process does."""
    given = {
        name: one.path or str(store.select(there[str(one.stage)], one.select)) for name, one in stage.inputs.items()
    }
    digests = {name: one.digest for name, one in stage.inputs.items() if one.digest}
    description = {"type": stage.settings_type, "values": stage.settings}
    call = load_call(stage.function, description, given, digests, stage.models, store.root / MEMORY, scratch)
    call(output, _reporter(stage.name))


def _reporter(name: str) -> Callable[..., None]:
    """What a stage calls as it reads: prints its share done, every `SAID_EVERY` seconds."""
    said = time.monotonic()

    def report(done: float, total: float, **_: Any) -> None:
        nonlocal said
        if time.monotonic() - said >= SAID_EVERY:
            said = time.monotonic()
            print(f"{name}: {done / max(1, total):.0%}", flush=True)

    return report


def _counted(directory: Path) -> str:
    """What an artifact's summary says of its rows."""
    summary = read_json(directory / "summary.json") or {}
    parts = [f"{count} rows in {name}" for name, count in sorted(summary.get("counts", {}).items())]
    for what in ("dropped", "truncated"):
        found = {name: count for name, count in summary.get(what, {}).items() if count}
        if found:
            parts.append(f"{what} {found}")
    return "; ".join(parts) or "no rows counted"
