"""The plan as a table and as JSON."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launch import stages
from launch.graph.estimate import Estimate, disk_forecast, estimate_plan
from launch.graph.plan import Input, Plan, Stage
from launch.graph.rungs_budget import rung_budget, rungs_text
from launch.graph.select import select
from launch.stages.contract import StageKind
from launch.stages.memory import GIB
from launch.store import Store
from launch.store.pauses import has_paused
from launch.text import bytes_text, seconds_text

SHOWN_INPUTS = 6  # of a stage in the table; `--json` has all


def _source(plan: Plan, given: Input) -> str:
    if given.stage is None:
        return str(given.path)
    return plan.stages[given.stage].address + (f" {given.select}" if given.select else "")


def _row(plan: Plan, stage: Stage, estimate: Estimate, kind: StageKind | None, state: str) -> dict[str, Any]:
    memory = estimate.memory
    return {
        "stage": stage.kind,
        "label": stage.label,
        "address": stage.address,
        "fingerprint": stage.fingerprint,
        "state": state,
        "inputs": {name: _source(plan, given) for name, given in stage.inputs.items()},
        "placement": stage.placement,
        "turns": kind.joins if kind is not None and kind.takes_turns(stage.placement) else None,
        "branches": list(stage.branches),
        "estimate": {**asdict(estimate), "memory": None if memory is None else memory.parts},
        "device_bytes": None if memory is None else memory.total,
    }


def _short(source: str, names: dict[str, str]) -> str:
    address, _, select = source.partition(" ")
    return " ".join([names[address], select]).strip() if address in names else source


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values: branches and their stages, every stage with state, inputs, placement, estimate; totals.

    Raises StoreError on a damaged artifact.
    """
    store = Store(plan.root)
    selected = select(plan, store)
    whole, plan = plan, selected.plan
    estimates = estimate_plan(plan, store)
    kinds = {kind.name: kind for kind in stages.in_order(plan.own_stages)}
    states = {mark: "hit" if one.source == "record" else "miss" for mark, one in estimates.items()}
    states |= {
        mark: "paused" for mark, stage in plan.stages.items() if states[mark] == "miss" and has_paused(store, stage)
    }
    missing = [estimates[mark] for mark, state in states.items() if state == "miss"]
    without_sharing = sum(
        estimates[mark].device_hours for branch in plan.branches for mark in set(branch.stages.values())
    )
    return {
        "recipe": plan.recipe,
        "root": plan.root,
        "branches": [{"name": b.name, "overrides": list(b.overrides), "stages": b.stages} for b in plan.branches],
        "selection": [
            {
                "group": choice.group,
                "chosen": list(choice.chosen) or None,
                "candidates": {candidate.setting: candidate.value for candidate in choice.candidates},
                "stopped": {one.setting: one.stopped for one in choice.candidates if one.stopped is not None},
                "rung": None if choice.halving is None else choice.halving.pending,
                "budget": None if choice.halving is None else asdict(rung_budget(whole, choice, store)),
            }
            for choice in selected.choices
        ],
        "stages": [
            _row(plan, stage, estimates[mark], kinds.get(stage.kind), states[mark])
            for mark, stage in plan.stages.items()
        ],
        "total": {
            "missing": len(missing),
            "seconds": sum(estimate.seconds for estimate in missing),
            "device_hours": sum(estimate.device_hours for estimate in missing),
            "device_hours_without_sharing": without_sharing,
            "bytes": sum(estimate.bytes for estimate in missing),
            "disk_bytes": disk_forecast(estimates, max(1, len(plan.branches))),
            "disk_free_bytes": _free(store.root),
        },
    }


def _free(root: Path) -> int:
    while not root.exists():
        root = root.parent
    return shutil.disk_usage(root).free


def _axes(plan: Plan) -> list[str]:
    """What tells the branches apart: of every swept field its values, so that a comma in a text is seen."""
    values: dict[str, dict[str, None]] = {}
    for branch in plan.branches:
        for text in branch.overrides:
            key, _, value = text.partition("=")
            values.setdefault(key, {})[value] = None
    lines = []
    for key, found in values.items():
        prose = any(" " in value for value in found)
        hint = f"; one text with a comma is quoted twice: {key}=\"'...'\"" if prose and len(found) > 1 else ""
        lines.append(f"branches by {key}: {' | '.join(found)}{hint}")
    return lines


def _turns(rows: list[dict[str, Any]]) -> list[str]:
    """Which stages wait for one another although their devices would hold them."""
    found: dict[tuple[str, str], int] = {}
    for row in rows:
        if row["turns"] is not None and row["state"] == "miss":
            found[row["stage"], row["turns"]] = found.get((row["stage"], row["turns"]), 0) + 1
    return [
        f"{count} {kind} stages over several nodes run one at a time, the others are queued: {why}"
        for (kind, why), count in found.items()
        if count > 1
    ]


def _inputs(inputs: Mapping[str, str], short: dict[str, str]) -> str:
    """What a stage reads, a few by name: an analysis of a sweep reads hundreds."""
    named = [f"{name}: {_short(source, short)}" for name, source in list(inputs.items())[:SHOWN_INPUTS]]
    left = len(inputs) - len(named)
    return ", ".join(named) + (f" and {left} more" if left else "")


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Prints the stages in order, with what is done already and how many branches share each."""
    console = console or Console(width=None if sys.stdout.isatty() else 150)
    found = plan_json(plan)
    rows, total = found["stages"], found["total"]
    for choice in found["selection"]:
        what = (
            ", ".join(choice["chosen"] or ())
            or f"undecided between {', '.join(choice['candidates'])}; RL and evaluation follow"
        )
        console.print(f"selection: {choice['group']}: {what}", markup=False)
        if choice["budget"] is not None:
            console.print(rungs_text(choice), markup=False, highlight=False)
    short = {stage.address: f"{stage.kind}/{stage.label}" for stage in plan.stages.values()}
    table = Table(
        title=f"{escape(plan.recipe)}: {len(plan.branches)} branches, {len(rows)} stages", title_justify="left"
    )
    table.add_column("artifact", no_wrap=True)
    table.add_column("state")
    table.add_column("inputs", overflow="fold")
    for column in ("devices", "GiB each", "time", "size", "branches"):
        table.add_column(column, justify="right")
    for row in rows:
        devices, cost = row["placement"]["nodes"] * row["placement"]["gpus_per_node"], row["estimate"]
        done = row["state"] == "hit"
        table.add_row(
            escape(row["address"]),
            row["state"],
            escape(_inputs(row["inputs"], short)),
            f"{devices:g}",
            "" if row["device_bytes"] is None else f"~{row['device_bytes'] / GIB:.2g}",
            ("" if done else "~") + seconds_text(cost["seconds"]),
            ("" if cost["exact_bytes"] else "~") + bytes_text(cost["bytes"]),
            str(len(row["branches"])),
        )
    for line in _axes(plan):
        console.print(line, markup=False, highlight=False)
    console.print(table)
    paused = sum(row["state"] == "paused" for row in rows)
    there = f"{len(rows) - total['missing'] - paused} there already" + (f", {paused} paused" if paused else "")
    console.print(f"{total['missing']} to run, {there}; the store is {plan.root}", markup=False)
    for line in _turns(rows):
        console.print(line, markup=False, highlight=False)
    if total["missing"]:
        shared = total["device_hours_without_sharing"] - sum(row["estimate"]["device_hours"] for row in rows)
        console.print(
            f"to run: ~{seconds_text(total['seconds'])} one after another, ~{total['device_hours']:.2g} device-hours, "
            f"~{bytes_text(total['bytes'])} published; sharing saves ~{max(0.0, round(shared, 4)):.2g} device-hours"
        )
        console.print(
            f"disk: ~{bytes_text(total['disk_bytes'])} needed at most, {bytes_text(total['disk_free_bytes'])} free"
            + ("; free some first" if total["disk_bytes"] > total["disk_free_bytes"] else "")
        )
    guesses = sum(row["estimate"]["source"] == "guess" for row in rows)
    if guesses:
        console.print(f"~ estimates; {guesses} of them rest on guessed speeds until a stage of that kind has run here")
