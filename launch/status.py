"""What a run is doing: the driver's display, its time budget at the end, and `status` from any machine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from launch.plan import Plan, Stage
from launch.select import select
from launch.store import HEARTBEAT, Corrupt, Store, host, read_json

if TYPE_CHECKING:
    from launch import run

PLAIN_INTERVAL = 10.0  # seconds between two progress lines of a stage without a terminal


def seconds_text(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 2 h 03 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def bytes_text(count: float) -> str:
    """Bytes in MB or GB (powers of ten)."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def metrics_text(metrics: Mapping[str, float]) -> str:
    """name=value of up to four metrics."""
    return " ".join(f"{name}={value:.4g}" for name, value in list(metrics.items())[:4])


class Display:
    """The driver's view while it runs: bars on a terminal, plain lines elsewhere."""

    def __init__(self, plan: Plan, store: Store) -> None:
        self._store, self._total = store, len(plan.stages)
        self._console = Console()
        self._bars: Progress | None = None
        if self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(None),
                TextColumn("{task.fields[count]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[metrics]}"),
                console=self._console,
            )
        self._tasks: dict[str, TaskID] = {}
        self._states: dict[str, str] = {}
        self._said: dict[str, float] = {}
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

    def update(self, stages: Mapping[str, run.Progress]) -> None:
        """Shows what changed since the last call."""
        now = time.monotonic()
        for mark, progress in stages.items():
            if progress.state != self._states.get(mark, "waiting"):
                self._changed(mark, progress)
        if now - self._updated < 0.5:
            return
        self._updated = now
        for mark, progress in stages.items():
            if progress.state == "running":
                self._advance(mark, progress.stage, now)

    def _changed(self, mark: str, progress: run.Progress) -> None:
        self._states[mark] = progress.state
        stage, name = progress.stage, f"{progress.stage.kind} {progress.stage.label}"
        if progress.state == "running":
            self.say(f"{name} started, log {self._store.logs(stage) / f'attempt-{progress.attempt}.log'}")
            self._said[mark] = time.monotonic()
            if self._bars is not None:
                self._tasks[mark] = self._bars.add_task(name, total=None, count="", metrics="")
            return
        if self._bars is not None and mark in self._tasks:
            self._bars.remove_task(self._tasks.pop(mark))
        if progress.state in ("done", "failed", "blocked", "held"):
            detail = f": {progress.message}" if progress.message else ""
            if progress.state == "done":
                detail = f" {seconds_text(progress.seconds)}, peak {bytes_text(progress.peak_memory_bytes)}"
            self.say(f"{name} {progress.state}{detail}")

    def _advance(self, mark: str, stage: Stage, now: float) -> None:
        progress = read_json(self._store.logs(stage) / "progress.json")
        if progress is None:
            return
        count, metrics = f"{progress['done']}/{progress['total']}", metrics_text(progress["metrics"])
        if self._bars is not None:
            self._bars.update(
                self._tasks[mark], completed=progress["done"], total=progress["total"], count=count, metrics=metrics
            )
        elif now - self._said[mark] >= PLAIN_INTERVAL:
            self._said[mark] = now
            self.say(f"{stage.kind} {stage.label} {count} {metrics}".rstrip())


def print_budget(stages: Sequence[run.Progress], elapsed: float) -> None:
    """A line for each stage that ran: its time, the wait for devices before it, its peak memory; then the sum."""
    ran = [p for p in stages if p.state != "cached" and (p.seconds or p.state in ("failed", "done"))]
    if ran:
        table = Table(title="Time budget", title_justify="left", box=None, pad_edge=False)
        table.add_column("stage", overflow="fold")
        for name in ("state", "time", "waited", "peak memory"):
            table.add_column(name, justify="right", no_wrap=True)
        for p in ran:
            name = f"{p.stage.kind} {p.stage.label}"
            table.add_row(
                name, p.state, seconds_text(p.seconds), seconds_text(p.waited), bytes_text(p.peak_memory_bytes)
            )
        total = sum(p.seconds for p in ran)
        table.add_row("all", "", seconds_text(total), "", bytes_text(max(p.peak_memory_bytes for p in ran)))
        Console(width=None if sys.stdout.isatty() else 110).print(table)
    print(f"elapsed: {seconds_text(elapsed)}")


def collect(plan: Plan) -> list[dict[str, Any]]:
    """One row for each stage: kind, label, state, done, total, eta (s), seconds, metrics, message, owner, log.

    States: done, damaged, running, stale (its driver is dead), failed, blocked, waiting. A driver on another host
    counts as running if its heartbeat moves while this function waits two beats for it.
    """
    store = Store(plan.root)
    plan = select(plan, store).plan
    owners = {mark: store.owner(stage) for mark, stage in plan.stages.items()}
    alive = _alive(store, {owner for owner in owners.values() if owner is not None})
    rows: dict[str, dict[str, Any]] = {}
    for mark, stage in plan.stages.items():
        logs = store.logs(stage)
        row: dict[str, Any] = {
            "kind": stage.kind,
            "label": stage.label,
            "fingerprint": mark,
            "state": "waiting",
            "done": None,
            "total": None,
            "eta": None,
            "seconds": None,
            "metrics": {},
            "message": "",
            "owner": owners[mark],
            "log": str(logs / "latest") if (logs / "latest").exists() else None,
        }
        rows[mark] = row
        try:
            record = store.find(stage)
        except Corrupt as error:
            row |= {"state": "damaged", "message": str(error)}
            continue
        progress = read_json(logs / "progress.json")
        if record is not None:
            row |= {"state": "done", "seconds": record.seconds}
        elif owners[mark] is not None:
            row["state"] = "running" if owners[mark] in alive else "stale"
            if progress is not None:
                row |= {name: progress[name] for name in ("done", "total", "seconds", "metrics")}
                if 0 < progress["done"] <= progress["total"]:
                    row["eta"] = progress["seconds"] * (progress["total"] - progress["done"]) / progress["done"]
        else:
            numbers = [int(p.name.split("-")[1].split(".")[0]) for p in logs.glob("attempt-*.result.json")]
            result = read_json(logs / f"attempt-{max(numbers)}.result.json") if numbers else None
            inputs = [rows[given.stage]["state"] for given in stage.inputs.values() if given.stage is not None]
            if any(state in ("failed", "blocked", "damaged") for state in inputs):
                row["state"] = "blocked"
            elif result is not None and result["outcome"] not in ("ok", "unstarted", "stopped", "lost"):
                row |= {
                    "state": "failed",
                    "message": f"{result['outcome']}: {result['message']}",
                    "seconds": result["seconds"],
                }
    return list(rows.values())


def _alive(store: Store, owners: set[str]) -> set[str]:
    first = {driver.run: driver for driver in store.list_drivers() if driver.run in owners}

    local = {run for run, driver in first.items() if driver.host == host() and store.alive(run)}
    foreign = {run for run, driver in first.items() if driver.host != host()}
    if foreign:
        time.sleep(2 * HEARTBEAT)
        later = {driver.run: driver.counter for driver in store.list_drivers()}
        foreign = {run for run in foreign if later.get(run, first[run].counter) != first[run].counter}
    return local | foreign


def _table(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> Group:
    colours = {
        "done": "green",
        "running": "cyan",
        "failed": "red",
        "damaged": "red",
        "blocked": "yellow",
        "stale": "yellow",
    }
    table = Table(title=f"{plan.recipe} in {Store(plan.root).root}", title_justify="left")
    for column in ("stage", "state", "progress", "time", "left", "last metrics"):
        table.add_column(column, overflow="fold")
    for row in rows:
        colour = colours.get(row["state"], "")
        table.add_row(
            f"{row['kind']} {row['label']}",
            f"[{colour}]{row['state']}[/]" if colour else row["state"],
            f"{row['done']}/{row['total']}" if row["total"] else "",
            seconds_text(row["seconds"]) if row["seconds"] else "",
            seconds_text(row["eta"]) if row["eta"] else "",
            metrics_text(row["metrics"]) or row["message"],
        )
    shown = [row for row in rows if row["state"] in ("running", "failed", "stale") and row["log"]]
    logs = [f"{row['kind']} {row['label']}: {row['log']}" for row in shown]
    states = [row["state"] for row in rows]
    return Group(table, ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)), *logs)


def show_status(plan: Plan, *, watch: bool, as_json: bool) -> int:
    """Prints the state of every stage; `watch` refreshes until all are done or nothing can move. Returns 0."""
    rows = collect(plan)
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    if not watch:
        Console().print(_table(plan, rows))
        return 0
    with Live(_table(plan, rows), auto_refresh=False) as live:
        while any(row["state"] in ("running", "waiting", "stale") for row in rows):
            time.sleep(1.0)
            rows = collect(plan)
            live.update(_table(plan, rows), refresh=True)
    return 0
