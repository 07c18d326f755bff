"""What a selection by rungs takes, as `plan` says it."""

from __future__ import annotations

from typing import Any

from launch.graph.estimate import estimate_plan
from launch.graph.plan import Plan
from launch.graph.rungs import Budget, budget
from launch.graph.select import Choice
from launch.store import Store


def rung_budget(whole: Plan, choice: Choice, store: Store) -> Budget:
    """Device-hours of a group's RL over its rungs. whole: the plan before selection, whose runs have no pause."""
    settings, estimates = whole.branches[0].recipe.selection, estimate_plan(whole, store)
    costs = {
        one.setting: sum(estimates[run.fingerprint].device_hours for run in one.stages) for one in choice.candidates
    }
    assert choice.halving is not None
    return budget(choice.halving, costs, settings.rungs, settings.keep)


def rungs_text(choice: dict[str, Any]) -> str:
    """A line for a selection as `plan --json` shows it."""
    found = choice["budget"]
    stopped = ", ".join(f"{setting} at step {rung}" for setting, rung in choice["stopped"].items())
    now = "all that is left runs to the end" if choice["rung"] is None else f"now to step {choice['rung']}"
    hours = f"{found['least']:.2g} to {found['most']:.2g}"
    if f"{found['least']:.2g}" == f"{found['most']:.2g}":
        hours = f"{found['most']:.2g}"
    return (
        f"  rungs: {now}; stopped: {stopped or 'none'}; RL takes ~{hours} device-hours over all rungs, "
        f"~{found['whole']:.2g} if no candidate were stopped"
    )
