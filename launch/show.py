"""The plan as a table and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from launch.plan import Input, Plan, Stage
from launch.store import Store


def _source(plan: Plan, given: Input) -> str:
    if given.stage is None:
        return str(given.path)
    return plan.stages[given.stage].address + (f" {given.select}" if given.select else "")


def _row(plan: Plan, stage: Stage, store: Store) -> dict[str, Any]:
    return {
        "stage": stage.kind,
        "label": stage.label,
        "address": stage.address,
        "fingerprint": stage.fingerprint,
        "state": "hit" if store.has(stage) else "miss",
        "inputs": {name: _source(plan, given) for name, given in stage.inputs.items()},
        "placement": stage.placement,
        "branches": list(stage.branches),
    }


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values: branches with their stages, and every stage with state, inputs and placement."""
    store = Store(plan.root)
    return {
        "recipe": plan.recipe,
        "root": plan.root,
        "branches": [{"name": b.name, "overrides": list(b.overrides), "stages": b.stages} for b in plan.branches],
        "stages": [_row(plan, stage, store) for stage in plan.stages.values()],
    }


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Prints the stages in order, with what is done already and how many branches share each."""
    console = console or Console()
    rows = plan_json(plan)["stages"]
    table = Table(title=f"{plan.recipe}: {len(plan.branches)} branches, {len(rows)} stages", title_justify="left")
    for column in ("stage", "artifact", "state", "inputs", "devices", "branches"):
        table.add_column(column, overflow="fold")
    for row in rows:
        devices = row["placement"]["nodes"] * row["placement"]["gpus_per_node"]
        table.add_row(
            row["stage"],
            Path(row["address"]).name,
            row["state"],
            "\n".join(f"{name}: {source}" for name, source in row["inputs"].items()),
            f"{devices:g}",
            str(len(row["branches"])),
        )
    console.print(table)
    missing = sum(row["state"] == "miss" for row in rows)
    console.print(f"{missing} to run, {len(rows) - missing} there already; the store is {plan.root}")
