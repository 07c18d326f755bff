"""What of a store may be deleted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from common.files import read_json
from launch.store.records import read_record
from launch.store.store import Store


def collect(store: Store, *, delete: bool) -> list[Path]:
    """What no record refers to; `delete` removes it.

    Unfinished outputs, directories without a record, scratch, logs of superseded attempts, traces of dead drivers.
    Nothing of a published artifact and nothing that a living driver holds.
    """
    dead = [store.drivers / f"{driver.run}.json" for driver in store.list_drivers() if not store.alive(driver.run)]
    found = list(dead)
    for kind in sorted(path for path in store.root.glob("*") if (path / ".lock").exists()):
        with store.locked(kind.name):
            unreferenced = list(_unreferenced(store, kind))
            if delete:
                for path in unreferenced:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        found += unreferenced
    if delete:
        for path in dead:
            path.unlink(missing_ok=True)
    return found


def _unreferenced(store: Store, kind: Path) -> Iterator[Path]:
    held = set()
    for lease in kind.glob(".lease-*.json"):
        if store.alive((read_json(lease) or {}).get("run", "")):
            held.add(lease.name.removeprefix(".lease-").removesuffix(".json"))
        else:
            yield lease
    for path in sorted(kind.iterdir()):
        short = path.name.removesuffix(".logs").rpartition("-")[2]
        if path.name.startswith(".tmp-"):
            short = path.name.split("-")[1]
        if short in held or not path.is_dir():
            continue
        if path.name.endswith(".logs"):
            record = read_record(path.with_name(path.name.removesuffix(".logs")))
            keep = f"attempt-{record.attempt}." if record else ""
            yield from (p for p in sorted(path.glob("attempt-*")) if record and not p.name.startswith(keep))
        elif path.name.startswith((".tmp-", ".scratch-")) or read_record(path) is None:
            yield path
