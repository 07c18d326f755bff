"""Stage `rollouts`: answers to the RL prompts of every model that RL could start from, before RL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from launch.recipe.data import Data
from launch.recipe.platform import Placement
from launch.recipe.section import Section, identity, setting
from launch.stages._code import reward_code
from launch.stages.contract import Branch, Cost, Counts, Made, Settings, StageKind, Step
from launch.stages.memory import WIDTH, Memory, Shape, sampling
from launch.stages.references import numerics
from launch.stages.rl import FILLED, Rl, prompts_of
from launch.stages.sizes import engines

# What of `rl` the answers and their scores depend on.
SAMPLED = ("samples", "temperature", "top_p", "reward", "max_prompt_length", "max_response_length")
ANSWER_BYTES = 3.0  # of a sampled token in its artifact


class Readiness(Section):
    """Evidence before RL of which checkpoint deserves it."""

    enabled: bool = setting(False, "measure predictors of RL on the base and every SFT checkpoint")
    prompts: int | None = setting(256, "RL prompts sampled rl.samples times by each model; null: all", gt=0)
    seed: int = setting(0, "which prompts, and the sampling")


class RolloutsSettings(Settings):
    rl: Rl = setting(Rl(), "the recipe's rl section")
    data: Data = setting(Data(), "the recipe's data section")  # type: ignore[valid-type]
    readiness: Readiness = setting(Readiness(), "the recipe's readiness section")


class Rollouts(StageKind):
    name = "rollouts"
    version = 2
    function = "rl_stage.rollouts:run"
    after = ("prepare", "filter", "sft", "adopt", "average", "rl")
    shares_engine = True

    def steps(self, branch: Branch) -> Iterable[Step]:
        recipe = branch.recipe
        if not recipe.readiness.enabled:
            return
        for model in (model for model in branch.models if model.measured and model.phase != "rl"):
            yield Step(
                f"rollouts:{model.name}",
                model.label,
                RolloutsSettings(
                    rl=recipe.rl,
                    data=recipe.data,
                    readiness=recipe.readiness,
                    model=recipe.model,
                    platform=recipe.platform,
                ),
                {
                    "rl": {key: value for key, value in identity(recipe.rl).items() if key in SAMPLED},
                    "readiness": {"prompts": recipe.readiness.prompts, "seed": recipe.readiness.seed},
                    **reward_code(recipe),
                    **numerics(recipe, "dtype"),
                },
                {"model": model.source, "data": Made(prompts_of(branch))},
                of=model.name,
            )

    def placement(self, recipe: Any) -> Placement:
        return engines(recipe.rl.tensor_parallel, recipe.platform)

    def cost(self, recipe: Any, counts: Counts) -> Cost:
        rl, wanted = counts.settings["rl"], counts.settings["readiness"]["prompts"]
        prompts = counts.rows() if wanted is None else min(wanted, counts.rows())
        tokens = prompts * rl["samples"] * rl["max_response_length"] * FILLED
        return Cost(2 * counts.parameters() * tokens, ANSWER_BYTES * tokens, start_seconds=40.0, sampling=True)

    def memory(self, settings: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Memory:
        rl = settings["rl"]
        weights = WIDTH[settings["model"]["dtype"]] * shapes["model"].parameters / rl["tensor_parallel"]
        return sampling(weights, rl["gpu_memory"], settings["platform"])


ROLLOUTS = Rollouts()
