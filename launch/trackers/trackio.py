"""Trackio: files in the store (`TRACKIO_DIR=<store>/trackers/trackio trackio show`), or where its variables say.

Its variables: TRACKIO_DIR, TRACKIO_SPACE_ID, TRACKIO_SERVER_URL, HF_TOKEN.
"""

from __future__ import annotations

import contextvars
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from launch.trackers.contract import Row, State, TrackedRun, Tracker


class _Open:
    def __init__(self, run: TrackedRun, directory: Path) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(directory))  # read when the library is imported
        trackio: Any = import_module("trackio")
        # `init` ends the run of its context: each has a context of its own, so that branches are open beside each other
        self._run: Any = contextvars.Context().run(
            trackio.init,
            project=run.project,
            name=run.name,
            group=run.branch,
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._run.log(row.named(), step=row.step)

    def close(self, state: State) -> None:
        self._run.finish()


class Trackio(Tracker):
    name = "trackio"
    requirement = "trackio>=0.20"
    package = "trackio"

    def open(self, run: TrackedRun, directory: Path) -> _Open:
        return _Open(run, directory)


TRACKIO = Trackio()
