"""Stage `filter`: keeps the RL prompts that a model solves sometimes (`rl.filter`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from launch.recipe.section import identity
from launch.stages.contract import Branch, Cost, Counts, Made, Outside, StageKind, Step
from launch.stages.references import model_of, numerics
from launch.stages.rl import FILLED, RlSettings, reward_code

SAMPLED = ("filter", "reward", "max_prompt_length", "max_response_length", "top_p")  # what of `rl` it depends on
KEPT_BYTES = 200  # of a prompt in its artifact


class Filter(StageKind):
    name = "filter"
    version = 3
    function = "rl_stage.filter:run"
    after = ("prepare", "pretrain")

    def steps(self, branch: Branch) -> Iterable[Step]:
        recipe = branch.recipe
        if not (recipe.rl.enabled and recipe.rl.filter.enabled):
            return
        chosen = recipe.rl.filter
        model = model_of(recipe, "base") if chosen.model is None else _model(chosen)
        yield Step(
            "filter",
            "prompts",
            RlSettings(rl=recipe.rl, data=recipe.data, seed=recipe.seed, model=recipe.model, platform=recipe.platform),
            {
                "rl": {key: value for key, value in identity(recipe.rl).items() if key in SAMPLED},
                "seed": recipe.seed,
                **reward_code(recipe),
                **numerics(recipe, "dtype"),
            },
            {"model": model, "data": Made("prepare:rl")},
        )

    def cost(self, recipe: Any, counts: Counts) -> Cost:
        rl, size, prompts = counts.settings["rl"], counts.parameters(), counts.rows()
        tokens = rl["max_response_length"] * FILLED
        operations = 2 * size * prompts * rl["filter"]["samples"] * tokens
        return Cost(operations, KEPT_BYTES * prompts, start_seconds=60.0, sampling=True)


def _model(chosen: Any) -> Outside:
    field = "rl.filter"
    return Outside(chosen.model, f"{field}.model", chosen.revision, model=True, revision_field=f"{field}.revision")


FILTER = Filter()
