"""Stage `analyse`: pictures and tables over the artifacts of several branches, one stage for each analysis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from common.user_code import code_digest
from launch.graph.names import without_seed
from launch.recipe.platform import Placement
from launch.recipe.section import Section, setting
from launch.stages.contract import Branch, Cost, Counts, Given, Settings, StageKind, Step


class Reading(Section):
    """What an input of an analysis is: of which line (branch without its seed), seed, model and benchmark."""

    input: str = setting("", "name of the input")
    kind: str = setting("", "kind of the stage that made it")
    line: str = setting("", "branch without its seed")
    seed: str = setting("", "seed=... of the branch")
    model: str = setting("", "base, sft, rl, or the checkpoint that one of them is or started from (sft@50)")
    name: str = setting("", "benchmark, task or held_out; of another stage its role in the branch (base, teacher)")
    objective: dict[str, Any] = setting({}, "SFT objective of the branch, with its settings")


class AnalyseSettings(Settings):
    analysis: str = setting("", "name or dotted path")
    settings: dict[str, Any] = setting({}, "settings of its own section")
    target: str = setting("target", "the benchmark of the SFT domain")
    given: list[Reading] = setting([], "what the inputs are")


class Analyse(StageKind):
    name = "analyse"
    version = 2
    function = "evaluation.analyse:run"
    after = ("measure",)
    tables = ("tables/*.json",)

    def joint_steps(self, branches: Mapping[str, Branch]) -> Iterable[tuple[Step, Mapping[str, Given]]]:
        from evaluation import analyses
        from evaluation.analyses import check_settings

        recipe = next(iter(branches.values())).recipe
        for entry in recipe.analyses:
            own = {"name": entry} if isinstance(entry, str) else dict(entry)
            path = str(own.pop("name", ""))
            analysis = analyses.load(path)
            section = check_settings(path, own)
            settings_given = {} if section is None else section.model_dump(mode="json")
            inputs: dict[str, Given] = {}
            given: list[Reading] = []
            seen: set[str] = set()
            for name, branch in branches.items():
                for reading in _readings(analysis, branch):
                    mark = branch.fingerprints[reading.input]
                    if mark in seen:  # what branches share stands once
                        continue
                    seen.add(mark)
                    key = f"{len(inputs)}"
                    inputs[key] = Given(name, reading.input)
                    given.append(reading.model_copy(update={"input": key}))
            if not inputs and analysis.needs:
                continue
            settings = AnalyseSettings(
                analysis=path,
                settings=settings_given,
                target=recipe.eval.target,
                given=given,
                model=recipe.model,
                platform=recipe.platform,
            )
            identity = {
                "analysis": analysis.name,
                "version": analysis.version,
                "code": code_digest(path),
                "settings": settings_given,
                "target": recipe.eval.target,
                "given": [reading.model_dump(mode="json") for reading in given],
            }
            yield Step(f"analyse:{analysis.name}", analysis.name, settings, identity), inputs

    def placement(self, recipe: Any) -> Placement:
        return Placement(gpus_per_node=0)

    def cost(self, recipe: Any, counts: Counts) -> Cost:
        return Cost(bytes=100_000.0, start_seconds=5.0)


def _readings(analysis: Any, branch: Branch) -> Iterable[Reading]:
    """The steps of a branch that an analysis reads; `input` is the role."""
    line, seed = line_of(branch)
    for role, step in branch.steps.items():
        kind, _, rest = role.partition(":")
        kind = kind.partition("@")[0]
        if kind not in analysis.needs:
            continue
        found = Reading(input=role, kind=kind, line=line, seed=seed, name=rest)
        of = step.measures or step.asks
        if of is not None:
            if analysis.measured and of.kind not in analysis.measured:
                continue
            model = of.model.removesuffix("@final")
            found = found.model_copy(update={"model": model, "name": of.name})
        if found.model in ("base", "teacher") or kind == "cache":
            # Branches share them, so they are of none.
            found = found.model_copy(update={"line": "base model" if found.model == "base" else "", "seed": ""})
        elif found.model.startswith("rl@base"):  # branches share it
            found = found.model_copy(update={"line": "base model", "model": found.model.replace("@base", "", 1)})
        else:
            found = found.model_copy(update={"objective": dict(branch.recipe.objective)})
        yield found


def line_of(branch: Branch) -> tuple[str, str]:
    """The name of a branch without its seed, and its seed (or "")."""
    line, seed = without_seed(branch.name, branch.overrides)
    return line or str(branch.recipe.objective["name"]), seed


ANALYSE = Analyse()
