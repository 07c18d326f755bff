"""How a driver is asked to stop, and what happens if it does not manage to in time."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from common.processes import end_attempt
from launch.execution.jobs import Job
from launch.store import Store, StoreError

SIGNALS = (signal.SIGTERM, signal.SIGINT)  # Slurm, systemd, spot machines, Ctrl-C


@contextlib.contextmanager
def signals(ask: Callable[[str], None]) -> Iterator[None]:
    """Within it, SIGTERM and SIGINT call `ask(name of the signal)`. Does nothing outside the main thread."""

    def handler(number: int, _: object) -> None:
        ask(signal.Signals(number).name)

    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread
        for number in SIGNALS:
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def last_resort(seconds: float, give_up: Callable[[], None]) -> Iterator[None]:
    """Calls `give_up` from a thread, `seconds` after a signal of SIGNALS, unless this context has ended by then.

    The main thread may wait inside Ray for a cluster that got the same signal and is gone; no handler runs there then,
    but the interpreter notes each signal in a pipe as it arrives.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main:
        yield
        return
    noted, note = os.pipe()
    os.set_blocking(note, False)
    before = signal.set_wakeup_fd(note, warn_on_full_buffer=False)
    ended = threading.Event()

    def watch() -> None:
        while (number := os.read(noted, 1)) and number[0] not in SIGNALS:
            pass
        if number and not ended.wait(seconds):
            give_up()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        os.close(note)  # the watcher reads the end of file
        watcher.join()
        os.close(noted)


def abandon(jobs: Iterable[Job], store: Store) -> None:
    """Ends the processes of jobs on this host, without Ray, and writes a result of the stages that are not made."""
    for job in list(jobs):
        end_without_supervisor(job, store, "stopped", "its Ray cluster ended", patience=0.5)


def end_without_supervisor(
    job: Job, store: Store, outcome: str, message: str, *, patience: float = 30.0
) -> dict[str, dict[str, Any]]:
    """Ends what a job whose supervisor is gone still runs on this host, which would write beside the next attempt.

    Deletes what the attempts left, and writes a result of each stage that is not made. Returns the results by
    fingerprint.
    """
    try:
        end_attempt(job.tag, patience=patience)
    except RuntimeError as error:
        message = f"{message}; {error}"
    results = {}
    for stage in job.stages:
        attempt = job.attempts[stage.fingerprint]
        result = {"outcome": outcome, "message": message, "seconds": time.monotonic() - job.started}
        shutil.rmtree(store.temporary(stage, attempt), ignore_errors=True)
        with contextlib.suppress(StoreError, OSError):
            if store.find(stage) is None:
                store.finish(stage, attempt, result)
        results[stage.fingerprint] = {"fingerprint": stage.fingerprint, "peak_memory_bytes": 0, **result}
    return results
