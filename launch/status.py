"""`status`: what the runs of a plan are doing, from any machine that sees the store."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from common.pauses import pauses
from launch.graph.plan import Plan
from launch.graph.select import select
from launch.store import Corrupt, Store
from launch.store.leases import HEARTBEAT
from launch.store.patience import read
from launch.store.pauses import has_paused, pause_of
from launch.store.places import attempt_file, attempt_numbers
from launch.text import metrics_text, seconds_text


def collect(plan: Plan) -> list[dict[str, Any]]:
    """One row for each stage: kind, label, state, done, total, eta (s), seconds, metrics, message, owner, log.

    States: done, paused, damaged, running, stale (its driver is dead), failed, blocked, waiting. A driver on another
    host counts as running if its heartbeat moves while this function waits two beats for it.
    """
    store = Store(plan.root)
    plan = select(plan, store).plan
    owners = {fingerprint: store.owner(stage) for fingerprint, stage in plan.stages.items()}
    alive = _alive(store, {owner for owner in owners.values() if owner is not None})
    rows: dict[str, dict[str, Any]] = {}
    for fingerprint, stage in plan.stages.items():
        logs = store.logs(stage)
        row: dict[str, Any] = {
            "kind": stage.kind,
            "label": stage.label,
            "name": stage.name,
            "fingerprint": fingerprint,
            "state": "waiting",
            "done": None,
            "total": None,
            "eta": None,
            "seconds": None,
            "metrics": {},
            "message": "",
            "owner": owners[fingerprint],
            "log": str(logs / "latest") if (logs / "latest").exists() else None,
        }
        rows[fingerprint] = row
        try:
            record = store.find(stage)
        except Corrupt as error:
            row |= {"state": "damaged", "message": str(error)}
            continue
        progress = read(logs / "progress.json")
        if record is not None:
            row |= {"state": "done", "seconds": record.seconds}
        elif owners[fingerprint] is None and has_paused(store, stage):
            row |= {"state": "paused", "done": pause_of(stage), "total": stage.settings["rl"]["steps"]}
            row["metrics"] = _validated(pauses(store.scratch(stage))[row["done"]])
        elif owners[fingerprint] is not None:
            row["state"] = "running" if owners[fingerprint] in alive else "stale"
            if isinstance(progress, dict) and "metrics" in progress:
                row |= {name: progress[name] for name in ("done", "total", "seconds", "metrics")}
                if 0 < progress["done"] <= progress["total"]:
                    row["eta"] = progress["seconds"] * (progress["total"] - progress["done"]) / progress["done"]
        else:
            numbers = attempt_numbers(logs, "result.json")
            result = read(attempt_file(logs, numbers[-1], "result.json")) if numbers else None
            inputs = [rows[given.stage]["state"] for given in stage.inputs.values() if given.stage is not None]
            if any(state in ("failed", "blocked", "damaged") for state in inputs):
                row["state"] = "blocked"
            elif isinstance(result, dict) and result["outcome"] not in ("ok", "paused", "unstarted", "stopped", "lost"):
                row |= {
                    "state": "failed",
                    "message": f"{result['outcome']}: {result['message']}",
                    "seconds": result["seconds"],
                }
    return list(rows.values())


def _validated(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if name.startswith("validation_")}


def _alive(store: Store, owners: set[str]) -> set[str]:
    first = {driver.run: driver for driver in store.list_drivers() if driver.run in owners}
    local = {run for run, driver in first.items() if driver.here and store.alive(run)}
    foreign = {run for run, driver in first.items() if not driver.here}
    if foreign:
        time.sleep(2 * HEARTBEAT)
        later = {driver.run: driver.counter for driver in store.list_drivers()}
        foreign = {run for run in foreign if later.get(run, first[run].counter) != first[run].counter}
    return local | foreign


def _table(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> Group:
    colours = {
        "done": "green",
        "paused": "magenta",
        "running": "cyan",
        "failed": "red",
        "damaged": "red",
        "blocked": "yellow",
        "stale": "yellow",
    }
    table = Table(title=escape(f"{plan.recipe} in {Store(plan.root).root}"), title_justify="left")
    for column in ("stage", "state", "progress", "time", "left", "last metrics"):
        table.add_column(column, overflow="fold")
    for row in rows:
        colour = colours.get(row["state"], "")
        table.add_row(
            escape(row["name"]),
            f"[{colour}]{row['state']}[/]" if colour else row["state"],
            f"{row['done']}/{row['total']}" if row["total"] else "",
            seconds_text(row["seconds"]) if row["seconds"] else "",
            seconds_text(row["eta"]) if row["eta"] else "",
            escape(metrics_text(row["metrics"]) or row["message"]),
        )
    shown = [row for row in rows if row["state"] in ("running", "failed", "stale") and row["log"]]
    logs = [escape(f"{row['name']}: {row['log']}") for row in shown]
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
