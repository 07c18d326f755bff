"""Stage `measure`: grades answers, and computes scores, intervals and diversity; needs no device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.files import read_json
from launch.recipe.platform import Placement
from launch.stages._code import own_graders
from launch.stages.contract import Branch, Cost, Counts, Made, Measures, StageKind, Step
from launch.stages.generate import MeasuredSettings, measured
from launch.stages.prepare import problem_sources
from launch.stages.starts import BASE

SCORE_BYTES = 30_000.0


class Measure(StageKind):
    name = "measure"
    version = 2
    function = "evaluation.measure:run"
    after = ("generate",)
    shares_engine = True  # the pool of graders
    series = "eval"

    def steps(self, branch: Branch) -> Iterable[Step]:
        recipe = branch.recipe
        if not recipe.eval.enabled:
            return
        for model in (model for model in branch.models if model.measured):
            for thing in measured(recipe):
                role = f"generate:{model.name}/{thing.name}"
                inputs = {"generations": Made(role)}
                if thing.benchmark is not None and model.phase != "base":
                    if model.start != BASE:
                        inputs["trained_on_sft"] = Made("prepare:sft")
                    if model.phase == "rl":
                        inputs["trained_on_rl"] = Made("prepare:rl")
                yield Step(
                    f"measure:{model.name}/{thing.name}",
                    branch.steps[role].label,
                    thing.settings(MeasuredSettings, recipe),
                    {**thing.scored(recipe), "graders": _graders(thing, recipe)},
                    inputs,
                    measures=Measures(model.name, thing.name, thing.kind),
                )

    def placement(self, recipe: Any) -> Placement:
        return Placement(gpus_per_node=0)

    def engine(self, settings: Mapping[str, Any]) -> Any:
        return {name: value for name, value in settings.items() if name not in ("benchmark", "task", "held_out")}

    def cost(self, recipe: Any, counts: Counts) -> Cost:
        return Cost(bytes=SCORE_BYTES, start_seconds=5.0)

    def scalars(self, artifact: Path) -> Mapping[str, float]:
        """Every metric, with the ends of its 95% interval."""
        found = {}
        for name, one in read_json(artifact / "metrics.json")["metrics"].items():
            found |= {name: one["value"], f"{name}.low": one["low"], f"{name}.high": one["high"]}
        return found


def _graders(thing: Any, recipe: Any) -> dict[str, Any]:
    """Versions of the graders, and the user's own code: another grader grades again and generates nothing."""
    if thing.benchmark is None:
        return {}
    from evaluation import graders

    found: dict[str, Any] = {name: graders.load(name).version for name in graders.names()}
    own = own_graders(_named(thing, recipe))
    return {**found, **({"own": own} if own else {})}


def _named(thing: Any, recipe: Any) -> set[str]:
    """The graders that the problems of a benchmark name, as far as they are known before it is prepared."""
    from data_prep.sources.feeds import graders as named_graders
    from evaluation import benchmarks

    entry = next(entry for entry in recipe.eval.benchmarks if entry.name == thing.path)
    feeds = problem_sources(recipe, entry)
    if not feeds:
        return benchmarks.load(thing.path).graders()
    return named_graders(feeds, f"benchmark/{thing.name}")


MEASURE = Measure()
