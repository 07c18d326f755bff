"""Who makes what: drivers that sign on and beat, and leases of stages, which pass on when their owner is dead."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from common.files import read_json, write_json
from common.processes import end_attempt, start_time
from launch.store.errors import StoreError, full_disk_is_clear
from launch.store.places import Places
from launch.store.records import host

if TYPE_CHECKING:
    from launch.graph.plan import Stage

HEARTBEAT = 2.0  # seconds between two beats of a driver
PATIENCE = 60.0  # seconds without a new beat after which a driver on another host counts as dead


@dataclass(frozen=True)
class Driver:
    """One running `launch run`. `run` is its unique name, `counter` its heartbeat."""

    run: str
    recipe: str
    host: str
    pid: int
    started: float
    counter: int
    temporary: str


def end_run(run: str) -> None:
    """Ends what is left of a dead run's processes on this host. Raises StoreError if one survives."""
    try:
        end_attempt(run)
    except RuntimeError as error:
        raise StoreError(str(error)) from None


class Leases(Places):
    """Drivers and leases below `root`."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Raises StoreError for a URL."""
        super().__init__(root)
        self._seen: dict[str, tuple[int, float]] = {}

    def list_drivers(self) -> list[Driver]:
        """Every driver that has not signed off, dead or alive."""
        values = [read_json(path) for path in sorted(self.drivers.glob("*.json"))]
        return [Driver(**value) for value in values if value is not None]

    def alive(self, run: str) -> bool:
        """Whether a driver lives: its process if it ran on this host, else a heartbeat that still changes.

        A driver on another host counts as alive until its counter has stood still for PATIENCE seconds of this
        process's own clock.
        """
        value = read_json(self.drivers / f"{run}.json")
        if value is None:
            return False
        driver = Driver(**value)
        if driver.host == host():
            return start_time(driver.pid) == driver.started
        now = time.monotonic()
        counter, since = self._seen.get(run, (-1, now))
        if counter != driver.counter:
            self._seen[run] = (driver.counter, now)
            return True
        return now - since < PATIENCE

    def sign_off(self, run: str) -> None:
        """Forgets a driver that has ended."""
        for suffix in ("json", "stop"):
            (self.drivers / f"{run}.{suffix}").unlink(missing_ok=True)

    def owner(self, stage: Stage) -> str | None:
        """Name of the run that holds the stage, dead or alive, or None."""
        value = read_json(self.lease(stage))
        return None if value is None else value["run"]

    def acquire(self, stage: Stage, run: str) -> bool:
        """Claim a stage for a run; takes over from a dead owner after killing what is left of its processes here.

        Returns False while a living owner has it. Raises StoreError if a process of the dead owner does not end.
        """
        with self.locked(stage.kind):
            owner = self.owner(stage)
            if owner is not None and owner != run:
                if self.alive(owner):
                    return False
                end_run(owner)
            write_json(self.lease(stage), {"run": run, "stage": stage.fingerprint})
            for leftover in (self.root / stage.kind).glob(f".tmp-{stage.fingerprint[:16]}-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            return True

    def release(self, stage: Stage, run: str) -> None:
        """Give a stage back; does nothing if the run does not hold it."""
        with self.locked(stage.kind):
            if self.owner(stage) == run:
                self.lease(stage).unlink(missing_ok=True)

    def forget_dead_owner(self, stage: Stage) -> None:
        """Drop the lease, and end the processes, of a driver that died after publishing and before giving back."""
        owner = self.owner(stage)
        if owner is not None and not self.alive(owner):
            end_run(owner)
            self.release(stage, owner)


class Heartbeat:
    """Context of one driver: signs on, beats every HEARTBEAT seconds from a thread, signs off."""

    def __init__(self, leases: Leases, recipe: str, temporary: str = "") -> None:
        self.run = uuid.uuid4().hex
        self._leases, self._recipe, self._temporary = leases, recipe, temporary
        self._path = leases.drivers / f"{self.run}.json"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def stop_requested(self) -> bool:
        """Whether `launch stop` asked this driver to end."""
        return self._path.with_suffix(".stop").exists()

    def _write(self, counter: int) -> None:
        started = start_time(os.getpid())
        assert started is not None
        driver = Driver(self.run, self._recipe, host(), os.getpid(), started, counter, self._temporary)
        write_json(self._path, asdict(driver))

    def _beat(self) -> None:
        counter = 0
        while not self._ended.wait(HEARTBEAT):
            counter += 1
            with contextlib.suppress(OSError):  # a full disk for a moment must not end the run
                self._write(counter)

    def __enter__(self) -> Heartbeat:
        with full_disk_is_clear(self._leases.root):
            self._leases.drivers.mkdir(parents=True, exist_ok=True)
            self._write(0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._leases.sign_off(self.run)
