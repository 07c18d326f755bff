"""Checks a plan as far as possible without running it: the rooms' translations into verl's configuration."""

from __future__ import annotations

import importlib
from pathlib import Path

from launch.compose import RecipeError
from launch.plan import Plan
from launch.stage import namespace

# The stages that end in a trainer of verl, and who writes its configuration.
TRANSLATORS = {"sft": "sft_objectives.trainer.config", "rl": "rl_stage.config"}


def check_stage_configs(plan: Plan) -> dict[str, int]:
    """Builds and validates verl's configuration for every SFT and RL stage; returns how many of each kind.

    Takes no device and starts nothing. Raises RecipeError naming the artifact and the key.
    """
    checked: dict[str, int] = {}
    for stage in plan.stages.values():
        if stage.kind not in TRANSLATORS:
            continue
        room = importlib.import_module(TRANSLATORS[stage.kind])
        inputs = {
            name: Path(given.path or plan.stages[str(given.stage)].address) for name, given in stage.inputs.items()
        }
        try:
            room.verl_config(namespace(stage.settings), inputs, Path(plan.root) / stage.kind)
        except ValueError as error:
            raise RecipeError(f"{stage.address}: {error}") from None
        checked[stage.kind] = checked.get(stage.kind, 0) + 1
    return checked
