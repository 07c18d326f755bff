"""Stage `analyse`: pictures and tables over the artifacts of several branches, one stage for each analysis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from common.errors import ConfigError
from common.registry import code_digest
from launch.recipe.platform import Placement
from launch.recipe.section import Section, setting
from launch.stages.contract import Branch, Cost, Counts, Given, Settings, StageKind, Step


class Reading(Section):
    """What an input of an analysis is: of which line (branch without its seed), seed, model and benchmark."""

    input: str = setting("", "name of the input")
    kind: str = setting("", "kind of the stage that made it")
    line: str = setting("", "branch without its seed")
    seed: str = setting("", "seed=... of the branch")
    model: str = setting("", "name of the model in its branch")
    phase: str = setting("", "base, sft or rl")
    name: str = setting("", "benchmark, task or held_out")


class AnalyseSettings(Settings):
    analysis: str = setting("", "name or dotted path")
    settings: dict[str, Any] = setting({}, "settings of its own section")
    target: str = setting("target", "the benchmark of the SFT domain")
    given: list[Reading] = setting([], "what the inputs are")


class Analyse(StageKind):
    name = "analyse"
    version = 1
    function = "evaluation.analyse:run"
    after = ("measure",)
    tables = ("tables/*.json",)

    def joint_steps(self, branches: Mapping[str, Branch]) -> Iterable[tuple[Step, Mapping[str, Given]]]:
        from evaluation import analyses

        recipe = next(iter(branches.values())).recipe
        for entry in recipe.analyses:
            own = {"name": entry} if isinstance(entry, str) else dict(entry)
            path = str(own.pop("name", ""))
            analysis = analyses.load(path)
            section = _section(analysis, own)
            inputs: dict[str, Given] = {}
            given: list[Reading] = []
            seen: set[str] = set()
            for name, branch in branches.items():
                for reading in _readings(analysis.needs, branch):
                    mark = branch.fingerprints[reading.input]
                    if mark in seen:  # what branches share stands once
                        continue
                    seen.add(mark)
                    key = f"{len(inputs)}"
                    inputs[key] = Given(name, reading.input)
                    given.append(reading.model_copy(update={"input": key}))
            if not inputs:
                continue
            settings = AnalyseSettings(
                analysis=path,
                settings=section,
                target=recipe.eval.target,
                given=given,
                model=recipe.model,
                platform=recipe.platform,
            )
            identity = {
                "analysis": analysis.name,
                "version": analysis.version,
                "code": code_digest(path),
                "settings": section,
                "target": recipe.eval.target,
                "given": [reading.model_dump(mode="json") for reading in given],
            }
            yield Step(f"analyse:{analysis.name}", analysis.name, settings, identity), inputs

    def placement(self, recipe: Any) -> Placement:
        return Placement(gpus_per_node=0)

    def cost(self, recipe: Any, counts: Counts) -> Cost:
        return Cost(bytes=100_000.0, start_seconds=5.0)


def _section(analysis: Any, own: dict[str, Any]) -> dict[str, Any]:
    if analysis.section is None:
        if own:
            raise ConfigError(f"analyses: {analysis.name} has no settings; given: {', '.join(own)}")
        return {}
    try:
        return analysis.section.model_validate(own).model_dump(mode="json")
    except ValueError as error:
        raise ConfigError(f"analyses: {analysis.name}: {' '.join(str(error).split())}") from None


def _readings(needs: Iterable[str], branch: Branch) -> Iterable[Reading]:
    """The steps of a branch that an analysis reads; `input` is the role."""
    name_of_line, seed_of_line = line_of(branch)
    phases = {model.name: model.phase for model in branch.models}
    for role, step in branch.steps.items():
        kind = role.partition(":")[0].partition("@")[0]
        if kind in needs:
            model, name = step.measures or ("", "")
            is_base = phases.get(model) == "base"
            line, seed = ("base model", "") if is_base else (name_of_line, seed_of_line)
            yield Reading(
                input=role, kind=kind, line=line, seed=seed, model=model, phase=phases.get(model, ""), name=name
            )


def line_of(branch: Branch) -> tuple[str, str]:
    """The name of a branch without its seed, and its seed (or "")."""
    parts = branch.name.split()
    line = " ".join(part for part in parts if not part.startswith("seed="))
    return line or str(branch.recipe.objective["name"]), next((p for p in parts if p.startswith("seed=")), "")


ANALYSE = Analyse()
