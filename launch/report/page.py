"""The whole page: what stands where, and the notes that say how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launch.graph.plan import Plan
from launch.graph.select import Selected
from launch.report import artifacts, contrasts, predicted, published, readiness, selection, steps, tables
from launch.report.answer import facts, overridden, sentences
from launch.report.cells import Cells
from launch.report.figures import training_curves
from launch.report.lines import Line, keys, lines
from launch.report.parts import Cell, Grid, Key, Page, Section
from launch.report.picture import picture
from launch.report.source import Source
from launch.report.versions import different_packages

NOTES = (
    "pass@1 and pass@k are of the target benchmark, sampled; k is the largest one measured. General is the mean "
    "pass@1 of the other benchmarks (of a task its accuracy). Token entropy is the mean over held-out chats after "
    "SFT, in nats. Below each number its 95% interval over problems; gains are paired by problem. With several "
    "seeds a cell is the mean and, after ±, the standard deviation over seeds; its bounds are the means of the seeds' "
    "bounds, which are at least as far apart as those of the mean. Gains average each problem over seeds first."
)
BEST = "Marked as best is a pass@1 that paired tests (Holm, p <= 0.05) tell from every other in its column."
SCORES = (
    "pass@1, or balanced accuracy where the recipe asks for it; of a task of lm-evaluation-harness its first metric."
)
DRIFTS = (
    "Of the responses to the target: self-BLEU (100: all equal), distinct n-grams, tokens (quartiles), and the shares "
    "that were cut off, held no answer, or could not be graded. Of held-out chats, per token in nats: entropy, loss "
    "and KL(base || model)."
)
DETECTABLE = (
    "Paired differences in pass@1 on the target, where training ended. Detectable: the smallest difference that a test "
    "at 5% finds four times in five on so many problems."
)
COSTS = "A stage that branches share counts in each of them."


def page(selected: Selected, source: Source, whole: Plan) -> tuple[Page, list[tuple[Line, dict[str, Cell]]]]:
    """The report of a plan, and the rows of its main table with all their cells, empty ones too.

    whole: the plan before selection.
    """
    plan = selected.plan
    cells = Cells(source, plan.branches[0].recipe.eval)
    found = lines(plan, selected.ended)
    marks = keys(found)
    rows = [(line, tables.main_row(cells, line)) for line in found]
    against = contrasts.contrasts(cells, found)
    first = contrasts.reference(found)
    made_by = [record for stage in plan.stages.values() if (record := source.record(stage)) is not None]
    main = tables.main_grid(cells, rows)
    sections = [
        *_section("Scores", " ".join(filter(None, (NOTES, _best(main)))), main),
        *_section(f"Against {first.name if first else ''}", DETECTABLE, contrasts.table(against)),
        *_by_benchmark(tables.benchmarks(cells, found)),
        *_section("Diversity and drift", DRIFTS, tables.drift(cells, found)),
    ]
    sections += steps.sections(cells, found, marks, training_curves(found, marks, source))
    sections += readiness.sections(plan, source)
    sections += predicted.sections(plan, cells, found)
    sections += selection.sections(selected, whole, cells)
    sections += _cost(tables.taken_grid(rows), tables.costs(plan, source.store))
    sections += published.sections(plan, cells, found)
    sections += artifacts.sections(plan, source)
    made = Page(
        title=f"{plan.recipe}: SFT objectives, then RL",
        facts=facts(plan, cells, found, len(made_by)),
        answer=sentences(cells, rows, against, bool(made_by)),
        damaged=tuple(dict.fromkeys(filter(None, (*source.damaged, different_packages(made_by))))),
        picture=picture(rows, marks, cells.settings.target),
        sections=tuple(sections),
        notes=tuple(filter(None, (source.reproducible(), overridden(plan)))),
        keys=_of_rows(found, marks),
    )
    return made, rows


def _of_rows(found: Sequence[Line], marks: Mapping[str, Key]) -> dict[str, Key]:
    """How rows are marked: those of lines, and of their models after each phase."""
    after = {title: line.name for line, _, title in tables.after_each_phase(found)}
    return {**marks, **{title: marks[name] for title, name in after.items() if name in marks}}


def _best(table: Grid) -> str:
    return BEST if any(cell.best for _, cells in table.rows for cell in cells) else ""


def _by_benchmark(table: Grid) -> list[Section]:
    """None where the target is all that was measured: its scores stand above."""
    if len(table.columns) < 2:
        return []
    return _section("Scores by benchmark", " ".join(filter(None, (SCORES, _best(table)))), table)


def _cost(taken: Grid, spent: Grid) -> list[Section]:
    grids = tuple(table for table in (taken, spent) if table.rows and table.columns)
    return [Section("Cost", grids=grids, note=COSTS)] if grids else []


def _section(title: str, note: str, grid: Grid) -> list[Section]:
    """One section, or none if its table is empty."""
    return [Section(title, grids=(grid,), note=note)] if grid.rows and grid.columns else []
