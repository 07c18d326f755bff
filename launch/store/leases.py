"""Who makes what: drivers that sign on and beat, and leases of stages, which pass on when their owner is dead."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import write_json
from common.processes import end_attempt, start_time
from launch.store.errors import StoreError, clear_errors
from launch.store.patience import patiently, read
from launch.store.places import Places
from launch.store.records import host

if TYPE_CHECKING:
    from launch.graph.plan import Stage

HEARTBEAT = 2.0  # seconds between two beats of a driver
PATIENCE = 60.0  # seconds without a new beat after which a driver that is no process of ours here counts as dead


@dataclass(frozen=True)
class Driver:
    """One running `launch run`. `run` is its unique name, `plan` what it runs, `counter` its heartbeat."""

    run: str
    recipe: str
    host: str
    pid: int
    started: float
    counter: int
    temporary: str
    plan: str = ""
    user: int = -1

    @property
    def here(self) -> bool:
        """Whether its process, if it lives, is one that this process can see."""
        return self.host == host() and self.user in (-1, os.getuid())


def end_run(run: str) -> None:
    """Ends what is left of a dead run's processes on this host. Raises StoreError if one survives."""
    try:
        end_attempt(run)
    except RuntimeError as error:
        raise StoreError(str(error)) from None


def lease_owner(lease: Path) -> str | None:
    """The run that a lease names; None where it is absent or not whole."""
    value = read(lease)
    run = value.get("run") if isinstance(value, dict) else None
    return run if isinstance(run, str) else None


def _driver(value: Any) -> Driver | None:
    """A driver from its file; None for one that is not whole, or of another version."""
    try:
        return Driver(**value)
    except TypeError:
        return None


class Leases(Places):
    """Drivers and leases below `root`."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Raises StoreError for a URL."""
        super().__init__(root)
        self._seen: dict[str, tuple[object, float]] = {}
        self._here: set[str] = set()

    def list_drivers(self) -> list[Driver]:
        """Every driver that has not signed off, dead or alive; one whose file cannot be read is left out."""
        try:
            paths = patiently(lambda: sorted(self.drivers.glob("*.json")))
        except OSError:
            return []
        return [driver for path in paths if (driver := self.driver(path.stem)) is not None]

    def driver(self, run: str) -> Driver | None:
        """What a driver says of itself; None where its file is absent or cannot be read."""
        return _driver(read(self.drivers / f"{run}.json"))

    def alive(self, run: str) -> bool:
        """Whether a driver lives: its process if it is one of ours on this host, else a heartbeat that still changes.

        Any other driver, one whose file is late, unreadable or gone included, counts as alive until what this process
        sees of its heartbeat has stood still for PATIENCE seconds of this process's own clock.
        """
        driver = self.driver(run)
        if driver is not None and driver.here:
            self._here.add(run)
            return start_time(driver.pid) == driver.started
        beat = self._beat(run, driver)
        if beat is None and run in self._here:
            return False  # it has signed off
        now = time.monotonic()
        last, since = self._seen.get(run, (None, now))
        if run not in self._seen or beat != last:
            self._seen[run] = (beat, now)
            return True
        return now - since < PATIENCE

    def beat(self, run: str) -> object:
        """What changes with each beat of a driver; None where it has no file."""
        return self._beat(run, self.driver(run))

    def _beat(self, run: str, driver: Driver | None) -> object:
        if driver is not None:
            return driver.counter
        try:  # a file that cannot be read or understood still changes
            status = patiently(os.stat, self.drivers / f"{run}.json")
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def sign_off(self, run: str) -> None:
        """Forgets a driver that has ended."""
        for suffix in ("json", "stop"):
            with contextlib.suppress(PermissionError):
                patiently((self.drivers / f"{run}.{suffix}").unlink, missing_ok=True)

    def owner(self, stage: Stage) -> str | None:
        """Name of the run that holds the stage, dead or alive; None if none does or its lease is not whole."""
        return lease_owner(self.lease(stage))

    def acquire(self, stage: Stage, run: str) -> bool:
        """Claim a stage for a run; takes over from a dead owner after killing what is left of its processes here.

        Returns False while a living owner has it. Raises StoreError if a process of the dead owner does not end, or if
        this user may not write here.
        """
        owner = self.owner(stage)
        if owner is not None and owner != run:
            if self.alive(owner):
                return False
            end_run(owner)  # it may take seconds, so not under the lock
        with self.locked(stage.kind):
            if self.owner(stage) not in (owner, None, run):
                return False  # another run was quicker
            self._check_readable(self.lease(stage))
            patiently(write_json, self.lease(stage), {"run": run, "stage": stage.fingerprint})
            folder, pattern = self.root / stage.kind, f".tmp-{stage.fingerprint[:16]}-*"
            leftovers = self.set_aside(patiently(lambda: list(folder.glob(pattern))))
        for leftover in leftovers:
            shutil.rmtree(leftover, ignore_errors=True)
        return True

    def _check_readable(self, lease: Path) -> None:
        """Refuses a lease that says nothing to us because it is another user's: whose it is, it stays."""
        if patiently(lease.exists) and not os.access(lease, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(lease))

    def set_aside(self, paths: Iterable[Path]) -> list[Path]:
        """Renames directories out of the way, so that deleting them needs no lock; returns their new paths."""
        aside = []
        for path in paths:
            gone = path.with_name(f".tmp-gone-{uuid.uuid4().hex[:12]}")
            with contextlib.suppress(FileNotFoundError):
                patiently(os.rename, path, gone)
                aside.append(gone)
        return aside

    def release(self, stage: Stage, run: str) -> None:
        """Give a stage back; does nothing if the run does not hold it."""
        with self.locked(stage.kind):
            if self.owner(stage) == run:
                patiently(self.lease(stage).unlink, missing_ok=True)

    def forget_dead_owner(self, stage: Stage) -> None:
        """Drop the lease, and end the processes, of a driver that died after publishing and before giving back."""
        owner = self.owner(stage)
        if owner is not None and not self.alive(owner):
            end_run(owner)
            self.release(stage, owner)


class Heartbeat:
    """Context of one driver: signs on, beats every HEARTBEAT seconds from a thread, signs off.

    plan: what it runs, by which `stop` finds it.
    """

    def __init__(self, leases: Leases, recipe: str, temporary: str = "", plan: str = "") -> None:
        self.run = uuid.uuid4().hex
        self._leases, self._recipe, self._temporary, self._plan = leases, recipe, temporary, plan
        self._path = leases.drivers / f"{self.run}.json"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def stop_requested(self) -> bool:
        """Whether `launch stop` asked this driver to end."""
        try:
            return patiently(self._path.with_suffix(".stop").exists)
        except OSError:
            return False

    def _write(self, counter: int) -> None:
        started = start_time(os.getpid())
        assert started is not None
        driver = Driver(
            self.run, self._recipe, host(), os.getpid(), started, counter, self._temporary, self._plan, os.getuid()
        )
        patiently(write_json, self._path, asdict(driver))

    def _beat(self) -> None:
        counter = 0
        while not self._ended.wait(HEARTBEAT):
            counter += 1
            with contextlib.suppress(OSError):  # a full disk for a moment must not end the run
                self._write(counter)

    def __enter__(self) -> Heartbeat:
        with clear_errors(self._leases.root):
            self._leases.drivers.mkdir(parents=True, exist_ok=True)
            self._write(0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._leases.sign_off(self.run)
