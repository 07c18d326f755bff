"""The driver's view of its stages: what changes while it runs, and its time budget at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from launch.store.patience import read
from launch.store.places import Places, attempt_file
from launch.text import bytes_text, metrics_text, seconds_text

if TYPE_CHECKING:
    from launch.graph.plan import Stage

PLAIN_INTERVAL = 10.0  # seconds between two progress lines of a stage without a terminal, where it changed


class StageState(Protocol):
    """What is shown of a stage: seconds of its attempts, seconds it waited for devices, peak bytes."""

    stage: Stage
    state: str
    message: str
    attempt: int
    seconds: float
    waited: float
    peak_memory_bytes: int


class Display:
    """Bars on a terminal, plain lines elsewhere; `total` is the number of stages."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._console = Console()
        self._bars: Progress | None = None
        if self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(None),
                TextColumn("{task.fields[count]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("{task.fields[metrics]}", markup=False),
                console=self._console,
            )
        self._tasks: dict[str, TaskID] = {}
        self._states: dict[str, str] = {}
        self._said: dict[str, float] = {}
        self._lines: dict[str, str] = {}
        self._begun = time.monotonic()
        self._updated = 0.0

    def __enter__(self) -> Display:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, text: str) -> None:
        """One line with the time since the start."""
        line = f"[{time.monotonic() - self._begun:7.1f} s] {text}"
        if self._bars is not None:
            self._bars.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)

    def update(self, stages: Mapping[str, StageState]) -> None:
        """Shows what changed since the last call; stages by fingerprint."""
        now = time.monotonic()
        for fingerprint, shown in stages.items():
            if shown.state != self._states.get(fingerprint, "waiting"):
                self._changed(fingerprint, shown)
        if now - self._updated < 0.5:
            return
        self._updated = now
        for fingerprint, shown in stages.items():
            if shown.state == "running":
                self._advance(fingerprint, shown.stage, now)

    def _changed(self, fingerprint: str, shown: StageState) -> None:
        self._states[fingerprint] = shown.state
        stage, name = shown.stage, shown.stage.name
        if shown.state == "running":
            self.say(f"{name} started, log {attempt_file(self._places.logs(stage), shown.attempt, 'log')}")
            self._said[fingerprint] = time.monotonic()
            if self._bars is not None:
                self._tasks[fingerprint] = self._bars.add_task(name, total=None, count="", metrics="")
            return
        if self._bars is not None and fingerprint in self._tasks:
            self._bars.remove_task(self._tasks.pop(fingerprint))
        if shown.state in ("done", "paused", "failed", "blocked", "held"):
            detail = f": {shown.message}" if shown.message else ""
            if shown.state == "done":
                peak = bytes_text(shown.peak_memory_bytes)
                detail = f" {seconds_text(shown.seconds)}, peak {peak}, {self._made(stage)}"
            self.say(f"{name} {shown.state}{detail}")

    def _made(self, stage: Stage) -> Path:
        """Where what a stage has made is: of a model its last checkpoint."""
        directory = self._places.directory(stage)
        listing = read(directory / "checkpoints.json")
        if isinstance(listing, dict) and "final" in listing:
            return directory / "checkpoints" / f"step_{listing['final']}"
        return directory

    def _advance(self, fingerprint: str, stage: Stage, now: float) -> None:
        progress = read(self._places.logs(stage) / "progress.json")
        if not isinstance(progress, dict):
            return
        count, metrics = f"{progress['done']}/{progress['total']}", metrics_text(progress["metrics"])
        if self._bars is not None:
            self._bars.update(
                self._tasks[fingerprint],
                completed=progress["done"],
                total=progress["total"],
                count=count,
                metrics=metrics,
            )
            return
        if not progress["done"] and not metrics:
            return  # it has only begun, which is said already
        line = f"{stage.name} {count} {metrics}".rstrip()
        if line != self._lines.get(fingerprint) and now - self._said[fingerprint] >= PLAIN_INTERVAL:
            self._said[fingerprint], self._lines[fingerprint] = now, line
            self.say(line)


def print_outcome(stages: Sequence[StageState], places: Places, stopping: str) -> int:
    """What failed and why, and how many stages are in which state; returns the exit code of the run.

    stopping: why no further stages were started; "" if they were.
    """
    for one in stages:
        if one.state == "failed":
            print(f"failed: {one.stage.name}: {one.message}")
            print(f"  log: {places.logs(one.stage) / 'latest'}")
    states = [one.state for one in stages]
    shown = [state for state in ("cached", "done", "paused", "failed", "blocked", "stopped") if state in states]
    counts = ", ".join(f"{states.count(state)} {state}" for state in shown)
    print(counts + (f" ({stopping})" if stopping else ""))
    if "failed" in states:
        return 1
    return 3 if stopping and "stopped" in states else 0


def print_budget(stages: Sequence[StageState], elapsed: float) -> None:
    """A line for each stage that ran: its time, the wait for devices before it, its peak memory; then the sum."""
    ran = [p for p in stages if p.state != "cached" and (p.seconds or p.state in ("failed", "done", "paused"))]
    if ran:
        table = Table(title="Time budget", title_justify="left", box=None, pad_edge=False)
        table.add_column("stage", overflow="fold")
        for name in ("state", "time", "waited", "peak memory"):
            table.add_column(name, justify="right", no_wrap=True)
        for p in ran:
            name = p.stage.name
            table.add_row(
                escape(name), p.state, seconds_text(p.seconds), seconds_text(p.waited), bytes_text(p.peak_memory_bytes)
            )
        total = sum(p.seconds for p in ran)
        table.add_row("all", "", seconds_text(total), "", bytes_text(max(p.peak_memory_bytes for p in ran)))
        Console(width=None if sys.stdout.isatty() else 110).print(table)
    print(f"elapsed: {seconds_text(elapsed)}")
