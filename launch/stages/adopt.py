"""Stage `adopt`: a model that was trained elsewhere, in the place of the one that SFT makes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from launch.recipe.platform import Placement
from launch.recipe.section import setting
from launch.stages.contract import Branch, Cost, Counts, Made, Outside, Published, Settings, StageKind, Step
from launch.stages.sizes import weight_bytes
from launch.stages.starts import adopted, called, fine_tunes


class AdoptSettings(Settings):
    source: str = setting("", "directory or hub name that it comes from")


class AdoptStage(StageKind):
    name = "adopt"
    function = "rl_stage.adopt:run"
    after = ("prepare", "sft")
    decides = True

    def steps(self, branch: Branch) -> Iterable[Step]:
        recipe = branch.recipe
        if not fine_tunes(recipe) or recipe.sft.adopt is None:
            return
        place, commit = adopted(recipe)
        label = called(recipe)
        yield Step(
            "sft",
            label,
            AdoptSettings(source=recipe.sft.adopt, model=recipe.model, platform=recipe.platform),
            {},
            {
                "model": Outside(
                    place,
                    "sft.adopt",
                    commit,
                    model=True,
                    eos=recipe.model.eos,
                    revision_field="the part after @",
                )
            },
            (Published("sft", "sft", Made("sft", "checkpoint:final"), label, measured=recipe.average.weight is None),),
        )

    def placement(self, recipe: Any) -> Placement:
        return Placement(gpus_per_node=0)

    def cost(self, recipe: Any, counts: Counts) -> Cost:
        size = counts.parameters()
        return Cost(size, weight_bytes(size, counts.settings["model"]["dtype"]))


ADOPT = AdoptStage()
