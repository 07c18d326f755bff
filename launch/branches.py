"""`show`: where the models of a branch are, what was measured of them, what the branch cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.errors import ConfigError
from launch.graph.model import BranchModel
from launch.graph.plan import Branch, Plan
from launch.graph.select import select
from launch.store import Store
from launch.text import bytes_text, seconds_text

PRUNED = "deleted by rm"


def named(plan: Plan, names: Sequence[str]) -> list[Branch]:
    """The branches of these names, all of them where none is named. Raises ConfigError for an unknown one."""
    known = [branch.name for branch in plan.branches]
    for name in names:
        if name not in known:
            raise ConfigError(f"--branch {name}: no branch is called so; allowed: {', '.join(known)}")
    return [branch for branch in plan.branches if not names or branch.name in names]


def describe(plan: Plan, store: Store, branch: Branch) -> dict[str, Any]:
    """A branch as JSON values: its models with their directories and measures, its stages, and what they cost.

    A stage that other branches share counts here too, and is said to be shared. Raises StoreError for a damaged
    artifact.
    """
    attempts = store.costs()
    stages = []
    for role, mark in branch.stages.items():
        stage, record = plan.stages[mark], store.find(plan.stages[mark])
        mine = [row for row in attempts if row["fingerprint"] == mark]
        stages.append(
            {
                "role": role,
                "address": stage.address,
                "made": record is not None,
                "shared": len(stage.branches) > 1,
                "bytes": 0 if record is None else record.bytes,
                "attempts": len(mine),
                "seconds": sum(row["seconds"] for row in mine),
                "device_hours": sum(row["device_hours"] for row in mine),
            }
        )
    return {
        "branch": branch.name,
        "overrides": list(branch.overrides),
        "models": [_model(plan, store, branch, model) for model in branch.models],
        "stages": stages,
        "total": {key: sum(stage[key] for stage in stages) for key in ("attempts", "seconds", "device_hours", "bytes")},
    }


def selector(model: BranchModel) -> str:
    """Which checkpoint of its stage's artifact a model is, as `Store.select` takes it."""
    which = "final" if model.step is None else str(model.step)
    if model.phase == "sft" and model.name.partition("@")[2]:
        which = model.name.partition("@")[2]
    return f"checkpoint:{which}"


def _model(plan: Plan, store: Store, branch: Branch, model: BranchModel) -> dict[str, Any]:
    directory = None
    if model.role is None:
        directory = branch.recipe.model.path
    elif model.role in branch.stages:
        stage = plan.stages[branch.stages[model.role]]
        if store.find(stage) is not None:
            path = store.select(store.directory(stage), selector(model))
            directory = str(path) if path.is_dir() and any(path.iterdir()) else PRUNED
    measured = {}
    for name, mark in model.measures.items():
        there = mark in plan.stages and store.find(plan.stages[mark]) is not None
        measured[name] = plan.stages[mark].address if there else None
    return {"name": model.name, "phase": model.phase, "directory": directory, "measured": measured}


def show(plan: Plan, names: Sequence[str], *, as_json: bool) -> int:
    """Prints the branches of these names, or all; returns 0."""
    store = Store(plan.root)
    plan = select(plan, store).plan
    found = [describe(plan, store, branch) for branch in named(plan, names)]
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    console = Console(width=None if Console().is_terminal else 150)
    for one in found:
        total = one["total"]
        table = Table(title=escape(one["branch"]), title_justify="left")
        for column in ("model", "where", "measured"):
            table.add_column(column, overflow="fold")
        for model in one["models"]:
            done = [name for name, address in model["measured"].items() if address is not None]
            table.add_row(model["name"], escape(model["directory"] or "not made yet"), ", ".join(done))
        console.print(table)
        made = sum(stage["made"] for stage in one["stages"])
        shared = sum(stage["shared"] for stage in one["stages"])
        console.print(
            f"{made} of {len(one['stages'])} stages made ({shared} shared with other branches); {total['attempts']} "
            f"attempts, {seconds_text(total['seconds'])}, {total['device_hours']:.2f} device-hours, "
            f"{bytes_text(total['bytes'])}",
            markup=False,
        )
    return 0
