"""Artifacts on their way to and from a replica, beside the loop that starts stages.

What fails is tried again with growing pauses, and costs a copy at most: the run goes on without.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from launch.store import Corrupt, LeaseLost, Record, Store
from launch.store.replica import Cancelled, Replica

if TYPE_CHECKING:
    from launch.graph.plan import Stage

THREADS = 2  # artifacts at once; each moves several files at once
TRIES = 5  # of one artifact
FIRST_PAUSE = 1.0  # seconds; doubles

Task = tuple["Stage", str, Callable[[], None]]


class Copies:
    """Copies between a store and a replica, in threads that no exit waits for."""

    def __init__(self, store: Store, replica: Replica) -> None:
        self._store, self._replica = store, replica
        self._tasks: queue.Queue[Task] = queue.Queue()
        self._fetched: dict[str, Record | None] = {}
        self._lines: queue.Queue[str] = queue.Queue()
        self._cancelled = threading.Event()
        self._down = False  # an artifact has failed all its tries: the next ones get one
        self._threads: list[threading.Thread] = []
        self._pushed: set[str] = set()

    @property
    def url(self) -> str:
        return self._replica.url

    def push(self, stage: Stage) -> None:
        """Copies a published artifact to the replica, some time."""
        if stage.fingerprint not in self._pushed:
            self._pushed.add(stage.fingerprint)
            self._add((stage, "copied to", lambda: self._push(stage)))

    def fetch(self, stage: Stage, run: str) -> None:
        """Brings an artifact from the replica, if it has it; `run` holds the stage's lease. See `fetched`."""
        self._add((stage, "taken from", lambda: self._fetch(stage, run)))

    def fetched(self, stage: Stage) -> tuple[Record | None] | None:
        """None while a fetch is under way, then the record in a tuple, or None in it where it has to be made."""
        if stage.fingerprint not in self._fetched:
            return None
        return (self._fetched.pop(stage.fingerprint),)

    def lines(self) -> list[str]:
        """What there is to say since the last call."""
        found = []
        while not self._lines.empty():
            found.append(self._lines.get())
        return found

    @property
    def busy(self) -> int:
        """Artifacts under way or waiting."""
        return self._tasks.unfinished_tasks

    def finish(self, stopped: Callable[[], bool]) -> None:
        """Waits until all is copied, or `stopped()` (the next run copies the rest); prints what there is to say."""
        if self.busy and not stopped():
            print(f"copying {self.busy} artifacts to {self.url}", flush=True)
        while self.busy and not stopped():
            time.sleep(0.05)
            for line in self.lines():
                print(line, flush=True)
        self._cancelled.set()
        if self.busy:
            print(f"{self.busy} artifacts were not copied to {self.url}; the next run copies them")
        for line in self.lines():
            print(line)

    def _add(self, task: Task) -> None:
        self._tasks.put(task)
        if len(self._threads) < THREADS:
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()

    def _work(self) -> None:
        while True:
            stage, what, move = self._tasks.get()
            try:
                self._move(stage, what, move)
            finally:
                self._fetched.setdefault(stage.fingerprint, None)
                self._tasks.task_done()

    def _move(self, stage: Stage, what: str, move: Callable[[], None]) -> None:
        name, pause = stage.name, FIRST_PAUSE
        for left in reversed(range(1 if self._down else TRIES)):
            try:
                move()
                self._down = False
                return
            except (Cancelled, LeaseLost):
                return
            except Corrupt as error:
                self._lines.put(str(error))
                return
            except Exception as error:  # each object store's driver has its own errors
                text = " ".join(str(error).split())[:300]
                if not left:
                    self._down = True
                    self._lines.put(f"{name} was not {what} {self.url}: {type(error).__name__}: {text}")
                elif self._cancelled.wait(pause):
                    return
                pause *= 2

    def _push(self, stage: Stage) -> None:
        self._replica.push(self._store, stage, self._cancelled.is_set)

    def _fetch(self, stage: Stage, run: str) -> None:
        record = self._replica.pull(self._store, stage, run, self._cancelled.is_set)
        if record is not None:
            self._lines.put(f"{stage.name} taken from {self.url}")
        self._fetched[stage.fingerprint] = record
