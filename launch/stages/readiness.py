"""Stage `readiness`: predictors of what RL will make of a model, from what was measured before RL; needs no device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from launch.recipe.platform import Placement
from launch.recipe.section import setting
from launch.stages.contract import Branch, Cost, Counts, Made, Settings, StageKind, Step
from launch.stages.generate import HELD_OUT
from launch.stages.rollouts import Readiness

BYTES = 10_000.0


class ReadinessSettings(Settings):
    seed: int = setting(0, "of the bootstrap: eval.seed")
    resamples: int = setting(2000, "of the bootstrap: eval.resamples")


class ReadinessStage(StageKind):
    name = "readiness"
    version = 1
    function = "evaluation.readiness.stage:run"
    section = Readiness
    describes = "which checkpoint deserves RL (docs/readiness.md)"
    after = ("rollouts", "measure")

    def check(self, recipe: Any) -> None:
        metric = recipe.selection.metric
        if not metric.startswith("readiness/"):
            return
        if recipe.selection.fields and not recipe.readiness.enabled:
            raise ValueError(f"selection.metric={metric}: no readiness is measured; set readiness.enabled=true")
        from evaluation import readiness

        try:
            readiness.goal_of(metric.removeprefix("readiness/"))
        except ValueError as error:
            raise ValueError(f"selection.metric={metric}: {error}") from None

    def steps(self, branch: Branch) -> Iterable[Step]:
        from evaluation import readiness

        recipe = branch.recipe
        if not recipe.readiness.enabled:
            return
        versions = {name: readiness.load(name).version for name in readiness.names()}
        for model in (model for model in branch.models if model.measured and model.phase != "rl"):
            inputs = {"rollouts": Made(f"rollouts:{model.name}")}
            if model.name != "base":
                inputs["base_rollouts"] = Made("rollouts:base")
            for key, name in (("target", recipe.eval.target), ("held_out", HELD_OUT)):
                role = f"measure:{model.name}/{name}"
                step = branch.steps.get(role)
                if step is not None and step.measures is not None and step.measures.kind in ("benchmark", HELD_OUT):
                    inputs[key] = Made(role)
            yield Step(
                f"readiness:{model.name}",
                model.label,
                ReadinessSettings(
                    seed=recipe.eval.seed,
                    resamples=recipe.eval.resamples,
                    model=recipe.model,
                    platform=recipe.platform,
                ),
                {"seed": recipe.eval.seed, "resamples": recipe.eval.resamples, "predictors": versions},
                inputs,
                of=model.name,
            )

    def placement(self, recipe: Any) -> Placement:
        return Placement(gpus_per_node=0)

    def cost(self, recipe: Any, counts: Counts) -> Cost:
        return Cost(bytes=BYTES, start_seconds=5.0)


READINESS = ReadinessStage()
