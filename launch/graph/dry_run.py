"""Checks a plan as far as possible without running it, such as the translations into verl's configuration."""

from __future__ import annotations

from pathlib import Path

from common.settings import rebuild
from launch import stages
from launch.graph.plan import Plan
from launch.recipe.compose import RecipeError


def check_stage_configs(plan: Plan) -> dict[tuple[str, str], int]:
    """Asks the kind of every stage to check its settings; returns how many of each (kind, what was found fine).

    Takes no device and starts nothing. Raises RecipeError naming the artifact and the key.
    """
    checked: dict[tuple[str, str], int] = {}
    kinds = {kind.name: kind for kind in stages.in_order(plan.own_stages)}
    for stage in plan.stages.values():
        inputs = {
            name: Path(given.path or plan.stages[str(given.stage)].address) for name, given in stage.inputs.items()
        }
        settings = rebuild({"type": stage.settings_type, "values": stage.settings})
        try:
            fine = kinds[stage.kind].dry_run(settings, inputs, Path(plan.root) / stage.kind)
        except ValueError as error:
            raise RecipeError(f"{stage.address}: {error}") from None
        if fine is not None:
            checked[stage.kind, fine] = checked.get((stage.kind, fine), 0) + 1
    return checked
