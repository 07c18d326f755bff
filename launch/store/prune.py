"""Artifacts without their weights: the record stays and says which files were pruned, so that scores stay citable."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from common.files import write_json
from launch.store.pauses import has_paused
from launch.store.records import RECORD, Record
from launch.store.store import Store

if TYPE_CHECKING:
    from launch.graph.plan import Stage

FOLDER = "checkpoints"  # of an artifact, below which its models are


def weights_of(record: Record, keep: Collection[int] = ()) -> dict[str, dict[str, Any]]:
    """The entries of a record's payload that are models and still there, but for those of the steps `keep`."""
    kept = {f"step_{step}" for step in keep}
    return {
        name: entry
        for name, entry in record.payload.items()
        if PurePosixPath(name).parts[0] == FOLDER and PurePosixPath(name).parts[1] not in kept and "pruned" not in entry
    }


def is_pruned(record: Record) -> bool:
    """Whether `rm` has deleted files of it."""
    return any("pruned" in entry for entry in record.payload.values())


def wanted_again(stages: Mapping[str, Stage], store: Store) -> set[str]:
    """Fingerprints of artifacts whose pruned checkpoint a stage reads which is missing, or itself wanted again.

    stages: of a plan, inputs before users. Raises StoreError on a damaged artifact.
    """
    read: dict[str | None, set[str]] = defaultdict(set)
    found: set[str] = set()
    for mark, stage in reversed(list(stages.items())):
        record = store.find(stage)
        if record is not None and is_pruned(record) and any(_lacks(store, stage, record, one) for one in read[mark]):
            found.add(mark)
        if mark in found or (record is None and not has_paused(store, stage)):
            for given in stage.inputs.values():
                if given.select:
                    read[given.stage].add(given.select)
    return found


def _lacks(store: Store, stage: Stage, record: Record, select: str) -> bool:
    """Whether a checkpoint of an artifact is one that `rm` has deleted."""
    directory = store.directory(stage)
    below = f"{store.select(directory, select).relative_to(directory).as_posix()}/"
    return any(name.startswith(below) and "pruned" in entry for name, entry in record.payload.items())


def take_away(store: Store, stage: Stage) -> None:
    """Deletes a published artifact."""
    with store.locked(stage.kind):
        aside = store.set_aside([store.directory(stage)])
    for path in aside:
        shutil.rmtree(path, ignore_errors=True)


def prune(store: Store, stage: Stage, keep: Collection[int] = ()) -> None:
    """Deletes the models of a published artifact and marks them in its record; the record is written first.

    keep: steps whose checkpoints stay. A process killed between the two leaves files that the record no longer counts;
    pruning again deletes them.
    """
    directory = store.directory(stage)
    with store.locked(stage.kind):
        record = store.record(directory)
        if record is None:
            return
        gone = weights_of(record, keep)
        payload = {name: {**entry, "pruned": True} if name in gone else entry for name, entry in record.payload.items()}
        write_json(directory / RECORD, asdict(replace(record, payload=payload)), durable=True)
        for name in payload:
            if "pruned" in payload[name]:
                (directory / name).unlink(missing_ok=True)
