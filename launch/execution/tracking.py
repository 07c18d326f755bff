"""Trackers beside a run: what the stages of its branches leave in the store is shown elsewhere too.

A tracker has a thread of its own, which reads the curves of stages in work and the artifacts of finished ones, whoever
made them. What it has shown is kept in the store, so that the next session of a branch goes on there. It starts no
stage, and nothing waits for it: what a tracker refuses is said and tried again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from common.files import read_json, write_json
from launch import trackers
from launch.graph.plan import Plan
from launch.graph.tracked import Source, Tracked, tracked
from launch.store import Store, StoreError
from launch.trackers.contract import OpenRun, Row, State, Tracker

FOLDER = "trackers"  # below the store's root
INTERVAL = 2.0  # seconds between two looks at least
SHARE = 20  # a look takes at most one part in so many of the time
STOPPED = 3  # exit code of a run that was stopped
PAUSE = (5.0, 300.0)  # seconds before the second try of what failed, and at most; doubles
FINISH, LEAVE = 120.0, 2.0  # seconds that the last rows may take: at the end, and when the run was stopped

Shown = dict[str, dict[str, int]]  # fingerprint of a stage -> name of a number -> last step


class Tracking:
    """Context in which the branches of a plan are shown in the trackers that its recipe names.

    code: exit code of the run, set before the context is left.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        names = plan.branches[0].recipe.run.trackers
        runs = tracked(plan) if names else []
        self._feeds = [_Feed(trackers.load(name), runs, store) for name in names]
        self.code = 1

    def __enter__(self) -> Tracking:
        for feed in self._feeds:
            feed.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Writes what is left; what takes too long is left to the next session."""
        state: State = "finished" if self.code == 0 else "failed"
        if self.code == STOPPED or (kind is not None and not issubclass(kind, Exception)):
            state = "stopped"
        for feed in self._feeds:
            feed.end(state)
        deadline = time.monotonic() + (LEAVE if state == "stopped" else FINISH)
        for feed in self._feeds:
            feed.join(max(0.0, deadline - time.monotonic()))
            feed.conclude()


class _Feed(threading.Thread):
    """What one tracker shows."""

    def __init__(self, tracker: Tracker, runs: list[Tracked], store: Store) -> None:
        super().__init__(daemon=True, name=f"tracker {tracker.name}")
        folder = store.root / FOLDER
        self._tracker = tracker
        self._runs = [_Run(one, tracker, store, folder) for one in runs]
        self._ending = threading.Event()
        self._state: State = "stopped"

    def run(self) -> None:
        while not self._ending.is_set():
            begun = time.monotonic()
            for one in self._runs:
                if not self._ending.is_set():
                    one.look()
            self._ending.wait(max(INTERVAL, SHARE * (time.monotonic() - begun)))
        for one in self._runs:
            one.look(at_once=True)
            one.close(self._state)

    def end(self, state: State) -> None:
        self._state = state
        self._ending.set()

    def conclude(self) -> None:
        """Says which branches are not shown whole."""
        late = [one.branch for one in self._runs if one.late]
        if late or self.is_alive():
            what = ", ".join(late[:3]) + (f" and {len(late) - 3} others" if len(late) > 3 else "")
            print(
                f"{self._tracker.name} does not show all of {what or 'the run'} yet; the same command adds the rest",
                flush=True,
            )


class _Run:
    """What one tracker shows of one branch."""

    def __init__(self, tracked: Tracked, tracker: Tracker, store: Store, folder: Path) -> None:
        run = tracked.run
        self.branch, self._run, self._tracker = run.branch, run, tracker
        self._readers = [_Reader(source, store) for source in tracked.sources]
        self._directory = folder / tracker.name
        self._state_file = folder / ".shown" / f"{run.name}.{tracker.name}.json"
        self._lock: IO[str] | None = None
        self._shown: Shown = {}
        self._open: OpenRun | None = None
        self._closed = False
        self._pause, self._not_before = PAUSE[0], 0.0
        self._said = ""
        self.late = False  # there are rows that the tracker did not take

    def look(self, *, at_once: bool = False) -> None:
        """Shows what is new; `at_once` also where the last try failed a moment ago."""
        if self._closed or (time.monotonic() < self._not_before and not at_once):
            return
        try:
            self._look()
        except Exception as error:  # each library has its own
            self.late = True
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self._say(f"{self._tracker.name}: {self.branch} is not shown ({text}); it is tried again")
            self._not_before = time.monotonic() + self._pause
            self._pause = min(PAUSE[1], 2 * self._pause)

    def _look(self) -> None:
        found = [(reader.mark, row) for reader in self._readers for row in reader.rows()]
        if not found and self._open is None:
            return
        if not self._owns():
            self.late = True
            self._say(f"{self._tracker.name}: {self.branch} is shown by another run of it")
            return
        rows, shown = self._new(found)
        if rows:
            self.late = True
            if self._open is None:
                self._open = self._tracker.open(self._run, self._directory)
            self._open.log(rows)
            self._shown = shown
            write_json(self._state_file, shown)
        self.late = False
        self._pause = PAUSE[0]
        for reader in self._readers:
            reader.taken()
        if all(reader.finished for reader in self._readers):
            self.close("finished")

    def _new(self, found: list[tuple[str, Row]]) -> tuple[list[Row], Shown]:
        """The numbers whose steps are beyond what is shown; a step that a retry repeats is shown once."""
        shown = {mark: dict(steps) for mark, steps in self._shown.items()}
        rows = []
        for mark, row in found:
            steps = shown.setdefault(mark, {})
            values = {name: value for name, value in row.values.items() if row.step > steps.get(name, -1)}
            if values:
                rows.append(Row(row.series, row.step, values))
                steps.update(dict.fromkeys(values, row.step))
        return rows, shown

    def _owns(self) -> bool:
        """Holds the branch's lock, so that no two sessions write into one run; what is shown is read under it."""
        if self._lock is None:
            self._state_file.parent.mkdir(parents=True, exist_ok=True)
            file = self._state_file.with_suffix(".lock").open("a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return False
            self._lock = file
            self._shown = read_json(self._state_file) or {}
        return True

    def close(self, state: State) -> None:
        if self._closed:
            return
        self._closed = True
        if self._open is not None:
            try:
                self._open.close("finished" if all(reader.finished for reader in self._readers) else state)
            except Exception as error:
                text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                self._say(f"{self._tracker.name}: {self.branch} was not closed ({text})")
        if self._lock is not None:
            self._lock.close()

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            print(text, flush=True)


class _Reader:
    """The numbers of one stage: of its curve while it runs, of its artifact then."""

    def __init__(self, source: Source, store: Store) -> None:
        self._source, self._store = source, store
        self._place: tuple[int, int] | None = None  # of the curve in work: inode, and bytes read
        self._next: tuple[int, int] | None = None
        self._found = False
        self.finished = False  # all of it is shown

    @property
    def mark(self) -> str:
        return self._source.stage.fingerprint

    def rows(self) -> list[Row]:
        """Rows since those that were `taken`; earlier ones may come again."""
        if self.finished:
            return []
        source, stage = self._source, self._source.stage
        directory = self._store.directory(stage)
        self._found = self._is_made()
        if not self._found:
            return list(self._in_work()) if source.kind.curve else []
        rows = []
        curve = directory / source.kind.curve
        if source.kind.curve and curve.is_file():
            rows += [row for line in curve.read_bytes().splitlines() if (row := self._row(line)) is not None]
        scalars = source.kind.scalars(directory)
        return [*rows, Row(source.series, 0, dict(scalars))] if scalars else rows

    def taken(self) -> None:
        """What `rows` returned last is shown."""
        self.finished, self._place = self._found, self._next

    def _is_made(self) -> bool:
        with contextlib.suppress(StoreError):
            record = self._store.record(self._store.directory(self._source.stage))
            return record is not None and record.fingerprint == self.mark
        return False

    def _in_work(self) -> Iterator[Row]:
        """Rows of the curve in work. A stage adds to it, or replaces it, which the inode shows; a line may be half
        written."""
        try:
            with (self._store.scratch(self._source.stage) / self._source.kind.curve).open("rb") as file:
                status = os.fstat(file.fileno())
                inode, begun = status.st_ino, 0
                if self._place is not None and self._place[0] == inode and self._place[1] <= status.st_size:
                    begun = self._place[1]
                file.seek(begun)
                text = file.read()
        except OSError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._next = (inode, begun + len(whole))
        for line in whole.splitlines():
            row = self._row(line)
            if row is not None:
                yield row

    def _row(self, line: bytes) -> Row | None:
        try:
            found = json.loads(line)
        except ValueError:
            return None
        if not isinstance(found, Mapping) or not isinstance(found.get("step"), int):
            return None
        return Row(
            self._source.series, found["step"], {k: v for k, v in found.items() if k != "step" and _is_number(v)}
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
