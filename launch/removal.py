"""`rm`: deletes artifacts of branches, or the weights of their models alone, whose scores then stay.

An artifact that a branch outside the chosen ones reads as well is kept. A pruned artifact keeps its record, its metrics
and its curve; its weights are made again only when a stage that is missing reads them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from launch.branches import named
from launch.graph.plan import Plan, Stage
from launch.store import Record, Store, StoreError
from launch.store.prune import prune, take_away, weights_of
from launch.text import bytes_text

DAY = 86_400.0


def remove(plan: Plan, names: Sequence[str], *, checkpoints: bool, days: float | None, delete: bool) -> int:
    """Prints what goes and how many bytes, and with `delete` deletes it; returns 0.

    names: of branches; none: all. checkpoints: only weights. days: only what was made longer ago. Raises ConfigError
    for an unknown branch, StoreError for deleting while a run is alive.
    """
    store = Store(plan.root)
    chosen = {branch.name for branch in named(plan, names)}
    found: list[tuple[Stage, Record, int]] = []
    for stage in plan.stages.values():
        record = store.find(stage) if chosen.issuperset(stage.branches) else None
        if record is None or (days is not None and time.time() - record.started < days * DAY):
            continue
        size = sum(entry["bytes"] for entry in weights_of(record).values()) if checkpoints else record.bytes
        if size:
            found.append((stage, record, size))
    if delete and any(store.alive(driver.run) for driver in store.list_drivers()):
        raise StoreError(f"{store.root}: a run is alive, which may read what would go; stop it first")
    for stage, _, size in found:
        print(f"{bytes_text(size):>10}  {store.directory(stage)}")
        if delete and checkpoints:
            prune(store, stage)
        elif delete:
            take_away(store, stage)
    what = "weights of artifacts" if checkpoints else "artifacts"
    total = bytes_text(sum(size for *_, size in found))
    print(f"{len(found)} {what}, {total}" + (" deleted" if delete else "; add --delete to delete them"))
    return 0
