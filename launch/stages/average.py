"""Stage `average`: WiSE-FT, weights between the base's and the fine-tuned ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from launch.recipe.platform import Placement
from launch.recipe.section import Section, identity, setting
from launch.stages.contract import Branch, Cost, Counts, Made, Published, Settings, StageKind, Step
from launch.stages.references import model_of
from launch.stages.starts import called


class Average(Section):
    """WiSE-FT: theta = (1 - weight) * base + weight * fine-tuned."""

    weight: float | None = setting(None, "share of the fine-tuned weights; null leaves the stage out")


class AverageSettings(Settings):
    average: Average = setting(Average(), "the recipe's average section")


class AverageStage(StageKind):
    name = "average"
    version = 1
    function = "sft_objectives.average:run"
    section = Average
    describes = "weight averaging after SFT"
    after = ("sft", "adopt")

    def steps(self, branch: Branch) -> Iterable[Step]:
        recipe = branch.recipe
        if recipe.average.weight is None:
            return
        label = called(recipe)
        yield Step(
            "average",
            label,
            AverageSettings(average=recipe.average, model=recipe.model, platform=recipe.platform),
            {"average": identity(recipe.average)},
            {"base": model_of(recipe, "base"), "sft": Made("sft", "checkpoint:final")},
            (Published("average", "sft", Made("average", "checkpoint:final"), label),),
        )

    def placement(self, recipe: Any) -> Placement:
        return Placement(gpus_per_node=0)

    def cost(self, recipe: Any, counts: Counts) -> Cost:
        size = counts.parameters("sft")
        return Cost(4 * size, 4 * size + 4_000_000)


AVERAGE = AverageStage()
