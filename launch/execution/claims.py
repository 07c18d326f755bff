"""Claiming a stage: from the store, from a replica, or from another driver; and mending what is damaged."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping

from launch.execution.copies import Copies
from launch.execution.jobs import FINISHED, StageProgress
from launch.graph.plan import Stage
from launch.stages.contract import StageKind
from launch.store import Corrupt, Record, Store, StoreError


class Claims:
    """What one driver claims. `say` shows a line to the user; copies: to and from the replica, if there is one."""

    def __init__(
        self,
        store: Store,
        run: str,
        copies: Copies | None,
        kinds: Mapping[str, StageKind],
        say: Callable[[str], None],
    ) -> None:
        self._store, self._run, self._copies, self._kinds, self._say = store, run, copies, kinds, say

    def claim(self, progress: StageProgress) -> bool:
        """Takes the lease of a stage that has to run.

        False where another run holds it, where it is there by now, and while it may come from the replica.
        """
        stage = progress.stage
        if not self._store.acquire(stage, self._run):
            progress.state, progress.message = "held", "another run makes it"
            return False
        try:
            found = self._store.find(stage)  # another run may have made it since we looked
        except Corrupt as error:
            progress.state, progress.message = "failed", str(error)
            found = None
        if found is not None:
            _cached(progress, found)
        if progress.state in FINISHED:
            self._store.release(stage, self._run)
            return False
        if self._copies is not None and not progress.asked:
            progress.asked, progress.state = True, "fetching"
            self._copies.fetch(stage, self._run)
            return False
        progress.ready_since = progress.ready_since or time.monotonic()
        return True

    def fetched(self, progress: StageProgress) -> None:
        """Moves on a stage that is on its way from the replica, once that has ended."""
        found = None if self._copies is None else self._copies.fetched(progress.stage)
        if found is None:
            return
        (record,) = found
        if record is None:
            progress.state = "waiting"  # to be made here; the lease stays
            return
        _cached(progress, record)
        self._store.release(progress.stage, self._run)

    def release_all(self, stages: Iterable[Stage]) -> None:
        """Gives back every lease that is still ours, whatever ended the driver's loop."""
        for stage in stages:
            with contextlib.suppress(StoreError, OSError):
                if self._store.owner(stage) == self._run:
                    self._store.release(stage, self._run)

    def mend(self, progress: StageProgress) -> bool:
        """Has what is damaged of an artifact made again, once a run; False if its kind cannot mend it."""
        stage = progress.stage
        if progress.mended or not stage.mendable:
            return False
        damaged = self._store.take_apart(stage, self._run, self._kinds[stage.kind].mend)
        if damaged is None:
            return False
        progress.mended, progress.state = True, "waiting"
        self._say(f"{stage.name}: damaged; computing {damaged} again")
        return True


def _cached(progress: StageProgress, record: Record) -> None:
    progress.state, progress.seconds = "cached", record.seconds
    progress.peak_memory_bytes = record.peak_memory_bytes
