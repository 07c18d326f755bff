"""Stages that pause: up to which step one runs now, and whether it has come there.

The step is a runtime field of the stage's settings, so a stage keeps its fingerprint wherever it pauses. Where it has
paused is in its scratch directory, which stays until the stage is published.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import TYPE_CHECKING

from common.pauses import PAUSES, pauses
from launch.store.store import Store

if TYPE_CHECKING:
    from launch.graph.plan import Stage

SECTION, FIELD = "rl", "pause_at"


def pause_of(stage: Stage) -> int | None:
    """The step at which a stage is to pause; None: it runs to its end."""
    return stage.settings[SECTION][FIELD] if stage.kind == SECTION and SECTION in stage.settings else None


def pausing(stage: Stage, step: int | None) -> Stage:
    """The same stage, which pauses at another step."""
    section = {**stage.settings[SECTION], FIELD: step}
    return dataclasses.replace(stage, settings={**stage.settings, SECTION: section})


def has_paused(store: Store, stage: Stage) -> bool:
    """Whether a stage that is not published has come to the step at which it is to pause."""
    step = pause_of(stage)
    return step is not None and step in pauses(store.scratch(stage))


def kept_by_pause(store: Store, stage: Stage, *, scores: bool) -> int:
    """Bytes that `forget_pause` frees; 0 of a stage that has not paused. scores: whether the scores stay."""
    scratch = store.scratch(stage)
    files = [path for path in scratch.rglob("*") if path.is_file()] if pauses(scratch) else []
    return sum(path.stat().st_size for path in files if not (scores and path == scratch / PAUSES))


def forget_pause(store: Store, stage: Stage, *, scores: bool) -> None:
    """Deletes what a paused stage would go on from, or with `scores` all but its scores: it then starts anew."""
    scratch = store.scratch(stage)
    with store.locked(stage.kind):
        for path in scratch.iterdir() if scratch.is_dir() else ():
            if scores and path.name == PAUSES:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        if not scores:
            shutil.rmtree(scratch, ignore_errors=True)


def scores_at(store: Store, stage: Stage, step: int) -> dict[str, float] | None:
    """What a stage had measured at a step, from its pause or, once it is published, from its curve; None: not yet."""
    if store.find(stage) is not None:
        lines = (store.directory(stage) / "curve.jsonl").read_text().splitlines()
        rows = {row["step"]: row for row in map(json.loads, lines)}
        return rows.get(step, {})
    return pauses(store.scratch(stage)).get(step)
