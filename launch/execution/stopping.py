"""How a driver is asked to stop, and what happens if it does not manage to in time."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator

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
        with contextlib.suppress(RuntimeError):
            end_attempt(job.tag, patience=0.5)
        seconds = time.monotonic() - job.started
        for stage in job.stages:
            lost = {"outcome": "stopped", "message": "its Ray cluster ended", "seconds": seconds}
            with contextlib.suppress(StoreError, OSError):
                if store.find(stage) is None:
                    store.finish(stage, job.attempts[stage.fingerprint], lost)
