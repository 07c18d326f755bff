"""What of a store may be deleted."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from common.pauses import pauses
from launch.store.leases import HEARTBEAT, lease_owner
from launch.store.records import read_record
from launch.store.store import Store


def collect(store: Store, *, delete: bool) -> list[Path]:
    """What no record refers to; `delete` removes it.

    Unfinished outputs, directories without a record, scratch, logs of superseded attempts, traces of dead drivers of
    any host. Nothing of a published artifact, nothing that a living driver holds, and nothing of a paused stage (`rm`
    deletes those). Where a driver of another host has left a trace, this waits until its heartbeat has moved or stood
    still long enough.
    """
    dead = {run for run in _runs(store) if not _lives(store, run)}
    found = [path for run in sorted(dead) if (path := store.drivers / f"{run}.json").exists()]
    for kind in sorted(path for path in store.root.glob("*") if (path / ".lock").exists()):
        with store.locked(kind.name):
            unreferenced = list(_unreferenced(store, kind, dead))
            folders = [path for path in unreferenced if path.is_dir() and not path.is_symlink()]
            aside = store.set_aside(folders) if delete else []
            for path in unreferenced if delete else ():
                if path not in folders:
                    path.unlink(missing_ok=True)
        for path in aside:
            shutil.rmtree(path)
        found += unreferenced
    if delete:
        for run in dead:
            store.sign_off(run)
    return found


def _runs(store: Store) -> set[str]:
    """Drivers that have left a trace: signed on, or holding a lease."""
    signed = {path.stem for path in store.drivers.glob("*.json")}
    return signed | {run for path in store.root.glob("*/.lease-*.json") if (run := lease_owner(path)) is not None}


def _lives(store: Store, run: str) -> bool:
    """Whether a driver lives, waiting for its next heartbeat if it is one of another host."""
    driver = store.driver(run)
    alive = store.alive(run)
    if driver is not None and driver.here:
        return alive
    before = store.beat(run)
    while alive and store.beat(run) == before:
        time.sleep(HEARTBEAT / 4)
        alive = store.alive(run)
    return alive


def _unreferenced(store: Store, kind: Path, dead: set[str]) -> Iterator[Path]:
    held = set()
    for path in kind.glob(".lease-*.json"):
        run = lease_owner(path)
        if run is not None and run not in dead:
            held.add(path.name.removeprefix(".lease-").removesuffix(".json"))
        else:
            yield path
    for path in sorted(kind.iterdir()):
        short = path.name.removesuffix(".logs").rpartition("-")[2]
        if path.name.startswith(".tmp-"):
            short = path.name.split("-")[1]
        if path.name.startswith(".lock-lost-"):
            yield path
        if short in held or not path.is_dir():
            continue
        if path.name.endswith(".logs"):
            record = read_record(path.with_name(path.name.removesuffix(".logs")))
            keep = f"attempt-{record.attempt}." if record else ""
            yield from (p for p in sorted(path.glob("attempt-*")) if record and not p.name.startswith(keep))
        elif path.name.startswith(".scratch-") and pauses(path):
            continue  # it goes on from there
        elif path.name.startswith((".tmp-", ".scratch-")) or read_record(path) is None:
            yield path
