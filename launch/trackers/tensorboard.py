"""TensorBoard: event files in a directory for each run; `tensorboard --logdir <store>/trackers/tensorboard`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from launch.trackers.contract import Row, State, TrackedRun, Tracker


class _Open:
    def __init__(self, directory: Path) -> None:
        self._writer: Any = import_module("tensorboard.summary").Writer(str(directory))

    def log(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for name, value in row.named().items():
                self._writer.add_scalar(name, value, row.step)
        self._writer.flush()

    def close(self, state: State) -> None:
        self._writer.close()


class TensorBoard(Tracker):
    name = "tensorboard"
    requirement = "tensorboard>=2.13"
    package = "tensorboard"

    def open(self, run: TrackedRun, directory: Path) -> _Open:
        return _Open(directory / run.name)


TENSORBOARD = TensorBoard()
