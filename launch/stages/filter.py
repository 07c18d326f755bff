"""Stage `filter`: keeps the RL prompts that a model solves sometimes (`rl.filter`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from launch.recipe.platform import Placement
from launch.recipe.section import identity
from launch.stages._code import reward_code
from launch.stages.contract import Branch, Cost, Counts, Made, Outside, StageKind, Step
from launch.stages.memory import WIDTH, Memory, Shape, sampling
from launch.stages.references import model_of, numerics
from launch.stages.rl import FILLED, RlSettings
from launch.stages.sizes import engines

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
            RlSettings(
                rl=recipe.rl.model_copy(update={"filter": chosen.model_copy(update={"replicas": replicas(recipe)})}),
                data=recipe.data,
                seed=recipe.seed,
                model=recipe.model,
                platform=recipe.platform,
            ),
            {
                "rl": {key: value for key, value in identity(recipe.rl).items() if key in SAMPLED},
                "seed": recipe.seed,
                **reward_code(recipe),
                **numerics(recipe, "dtype"),
            },
            {"model": model, "data": Made("prepare:rl")},
        )

    def placement(self, recipe: Any) -> Placement:
        return engines(replicas(recipe) * recipe.rl.tensor_parallel, recipe.platform)

    def memory(self, settings: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Memory:
        rl = settings["rl"]
        weights = WIDTH[settings["model"]["dtype"]] * shapes["model"].parameters / rl["tensor_parallel"]
        return sampling(weights, rl["gpu_memory"], settings["platform"])

    def cost(self, recipe: Any, counts: Counts) -> Cost:
        rl, size, prompts = counts.settings["rl"], counts.parameters(), counts.rows()
        tokens = rl["max_response_length"] * FILLED
        operations = 2 * size * prompts * rl["filter"]["samples"] * tokens
        return Cost(operations, KEPT_BYTES * prompts, start_seconds=60.0, sampling=True)


def replicas(recipe: Any) -> int:
    """Engines of a filter: those asked for, or as many as the recipe's devices hold; of a CPU platform one."""
    rl, platform = recipe.rl, recipe.platform
    if rl.filter.replicas is not None:
        return rl.filter.replicas
    return 1 if platform.name == "cpu" else max(1, platform.nodes * platform.gpus_per_node // rl.tensor_parallel)


def _model(chosen: Any) -> Outside:
    field = "rl.filter"
    return Outside(chosen.model, f"{field}.model", chosen.revision, model=True, revision_field=f"{field}.revision")


FILTER = Filter()
