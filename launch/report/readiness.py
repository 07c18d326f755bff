"""What was known before RL: the predictors of every model that RL could start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evaluation import readiness
from evaluation.readiness.stage import read_figures
from launch.graph.names import without_seed
from launch.graph.plan import Branch, Plan, Stage
from launch.report.cells import mean_of
from launch.report.lines import BASE
from launch.report.parts import Cell, Section, grid
from launch.report.source import Source

NOTE = (
    "Of each model before RL, with 95% intervals over problems, prompts or chats; with several seeds the mean and, "
    "after ±, the standard deviation over seeds, and the means of the bounds. An arrow shows which value speaks for RL."
)
ARROWS = {"max": "↑", "min": "↓"}
PREFIX = "readiness:"  # before the model's name in a stage's role


def sections(plan: Plan, source: Source) -> list[Section]:
    """The table of predictors; none where none was measured. A row for each model, its seeds taken together."""
    rows: dict[str, dict[str, Stage]] = {}
    for branch in plan.branches:
        line = without_seed(branch.name, branch.overrides)[0] or str(branch.recipe.objective["name"])
        for role, mark in branch.stages.items():
            if role.startswith(PREFIX) and mark in plan.stages and source.whole(plan.stages[mark]):
                model = role.removeprefix(PREFIX)
                name = {"base": BASE, "sft": line, "average": line}.get(model, f"{line}, {model}")
                rows.setdefault(name, {})[mark] = plan.stages[mark]
    found = {
        name: [(read_figures(source.store.directory(stage)), stage.address) for stage in stages.values()]
        for name, stages in rows.items()
    }
    names = titles({key for seeds in found.values() for figures, _ in seeds for key in figures})
    columns = list(names.values())
    table = grid(columns, [(row, [_cell(seeds, name) for name in names]) for row, seeds in found.items()])
    return [Section("Before RL", grids=(table,), note=NOTE)] if table.rows else []


def stage_of(plan: Plan, branch: Branch | None, model: str) -> Stage | None:
    """The stage that has the figures of a branch's model; None where the plan has none."""
    mark = None if branch is None else branch.stages.get(PREFIX + model)
    return None if mark is None else plan.stages.get(mark)


def titles(present: set[str]) -> dict[str, str]:
    """Title, with its arrow, by name of every figure that is present, predictor by predictor, small k first."""
    found = {}
    for predictor in map(readiness.load, readiness.names()):
        own = [name for name in present if predictor.has(name)]
        for name in sorted(own, key=lambda one: (len(one), one)):
            found[name] = f"{predictor.title.replace(predictor.name, name)} {ARROWS[predictor.goal]}"
    return found


def _cell(seeds: Sequence[tuple[Mapping[str, Mapping[str, float]], str]], name: str) -> Cell:
    found = [(figures[name], address) for figures, address in seeds if name in figures]
    if not found:
        return Cell()
    return mean_of([one for one, _ in found], tuple(address for _, address in found))
