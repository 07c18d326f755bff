"""Claiming a stage: from the store, from a replica, or from another driver; and mending what is damaged."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from launch.execution.jobs import FINISHED, StageProgress
from launch.graph.plan import Stage
from launch.stages.contract import StageKind
from launch.store import Corrupt, Store, StoreError
from launch.store.replica import Replica


class Claims:
    """What one driver claims. `say` shows a line to the user."""

    def __init__(
        self,
        store: Store,
        run: str,
        replica: Replica | None,
        kinds: Mapping[str, StageKind],
        say: Callable[[str], None],
    ) -> None:
        self._store, self._run, self._replica, self._kinds, self._say = store, run, replica, kinds, say

    def claim(self, progress: StageProgress) -> bool:
        """Takes the lease of a stage that has to run; False where it is held, there by now or in the replica."""
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
            progress.state, progress.seconds = "cached", found.seconds
            progress.peak_memory_bytes = found.peak_memory_bytes
        if progress.state in FINISHED or self._pull(stage, progress):
            self._store.release(stage, self._run)
            return False
        progress.ready_since = progress.ready_since or time.monotonic()
        return True

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

    def push(self, stage: Stage) -> None:
        """Copies an artifact to the replica; a failure costs the copy only, and the next run tries again."""
        if self._replica is None:
            return
        try:
            self._replica.push(self._store, stage)
        except (StoreError, OSError) as error:
            self._say(f"{stage.name} was not copied to {self._replica.url}: {error}")

    def _pull(self, stage: Stage, progress: StageProgress) -> bool:
        """Takes a stage's artifact from the replica; a damaged one is said and made again."""
        if self._replica is None:
            return False
        try:
            record = self._replica.pull(self._store, stage, self._run)
        except Corrupt as error:
            self._say(str(error))
            return False
        if record is None:
            return False
        progress.state, progress.seconds = "cached", record.seconds
        progress.peak_memory_bytes = record.peak_memory_bytes
        self._say(f"{stage.name} taken from {self._replica.url}")
        return True
