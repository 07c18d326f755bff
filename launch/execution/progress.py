"""Progress of an attempt: what a stage reports, as a file that the driver, the supervisor and `status` read."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any

from common.files import write_json

INTERVAL = 0.2  # seconds between two writes at least


class Reporter:
    """Progress of one attempt: writes `progress.json`, at most five times a second; never ends the stage.

    `counter` counts progress that was made, not calls: a loop that says the same again is no sign of life.
    """

    def __init__(self, path: Path, attempt: int) -> None:
        self._path, self._attempt = path, attempt
        self._begun = time.monotonic()
        self._written = float("-inf")
        self._counter = 0
        self._said: tuple[Any, ...] = ()

    def __call__(self, done: int, total: int, /, **metrics: float) -> None:
        """`done` of `total` units of work are finished; metrics are the latest values of what is worth watching.

        A metric that is no finite number is written as null: the run goes on, and every JSON reader can show it.
        """
        with contextlib.suppress(OSError, TypeError, ValueError, OverflowError):  # a full disk, a stage's odd count
            self._report(int(done), int(total), {name: _number(value) for name, value in metrics.items()})

    def _report(self, done: int, total: int, metrics: dict[str, float | None]) -> None:
        said = (done, total, metrics)
        if said != self._said:
            self._said = said
            self._counter += 1
        now = time.monotonic()
        if now - self._written < INTERVAL and done < total:
            return
        self._written = now
        progress = {
            "attempt": self._attempt,
            "counter": self._counter,
            "done": done,
            "total": total,
            "seconds": round(now - self._begun, 3),
            "metrics": metrics,
        }
        write_json(self._path, progress)


def _number(value: Any) -> float | None:
    """A metric as a float; None where it is none, or not finite."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # RuntimeError: a tensor of several elements
        return None
    return number if math.isfinite(number) else None
