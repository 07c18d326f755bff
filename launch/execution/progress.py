"""Progress of an attempt: what a stage reports, as a file that the driver, the supervisor and `status` read."""

from __future__ import annotations

import math
import time
from pathlib import Path

from common.files import write_json

INTERVAL = 0.2  # seconds between two writes at least


class Reporter:
    """Progress and heartbeat of one attempt: writes `progress.json`, at most five times a second."""

    def __init__(self, path: Path, attempt: int) -> None:
        self._path, self._attempt = path, attempt
        self._begun = time.monotonic()
        self._written = float("-inf")
        self._counter = 0

    def __call__(self, done: int, total: int, /, **metrics: float) -> None:
        """`done` of `total` units of work are finished; metrics are the latest values of what is worth watching.

        A metric that is not finite is written as null: the run goes on, and every JSON reader can show it.
        """
        self._counter += 1
        now = time.monotonic()
        if now - self._written < INTERVAL and done < total:
            return
        self._written = now
        values = {name: float(value) for name, value in metrics.items()}
        progress = {
            "attempt": self._attempt,
            "counter": self._counter,
            "done": int(done),
            "total": int(total),
            "seconds": round(now - self._begun, 3),
            "metrics": {name: value if math.isfinite(value) else None for name, value in values.items()},
        }
        write_json(self._path, progress)
