"""A limit on how long each phase of a run may take."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def time_limit(seconds: float) -> Iterator[Callable[[str], None]]:
    """Gives a function that names the phase that begins and restarts its clock; a phase that takes longer than
    `seconds` raises TimeoutError in the main thread, out of whatever it waits for."""
    phase = "start-up"

    def expire(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"rl.step_timeout: {phase} took longer than {seconds:g} s")

    def begin(name: str) -> None:
        nonlocal phase
        phase = name
        signal.setitimer(signal.ITIMER_REAL, seconds)

    previous = signal.signal(signal.SIGALRM, expire)
    begin(phase)
    try:
        yield begin
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
