"""The whole page: what stands where, and the notes that say how to read it."""

from __future__ import annotations

from launch.graph.select import Selected
from launch.report import artifacts, predicted, published, readiness, steps, tables
from launch.report.cells import Cells
from launch.report.figures import training_curves
from launch.report.lines import Line, lines
from launch.report.parts import Cell, Grid, Page, Section
from launch.report.source import Source
from launch.report.versions import different_packages

NOTES = (
    "pass@1 and pass@k are of the target benchmark, sampled; k is the largest one measured. General is the mean "
    "pass@1 of the other benchmarks (of a task its accuracy). Token entropy is the mean over held-out chats after "
    "SFT, in nats. Intervals are 95% intervals over problems; gains are paired by problem. With several "
    "seeds a cell is the mean and, after ±, the standard deviation over seeds; its bounds are the means of the seeds' "
    "bounds, which are at least as far apart as those of the mean. Gains average each problem over seeds first."
)
SCORES = (
    "pass@1, or balanced accuracy where the recipe asks for it; of a task of lm-evaluation-harness its first metric."
)
DRIFTS = (
    "Of the responses to the target: self-BLEU (100: all equal), distinct n-grams, tokens (quartiles), and the shares "
    "that were cut off, held no answer, or could not be graded. Of held-out chats, per token in nats: entropy, loss "
    "and KL(base || model)."
)

DETECTABLE = "Detectable: the smallest difference that a test at 5% finds four times in five on so many problems."


def page(selected: Selected, source: Source) -> tuple[Page, list[tuple[Line, dict[str, Cell]]]]:
    """The report of a plan, and the rows of its main table with all their cells, empty ones too."""
    plan = selected.plan
    cells = Cells(source, plan.branches[0].recipe.eval)
    found = lines(plan, selected.ended)
    rows = [(line, tables.main_row(cells, line)) for line in found]
    training = training_curves(found, source)
    first = tables.reference(found)
    sections = [
        *_section("Scores by benchmark", SCORES, tables.benchmarks(cells, found)),
        *_section("Diversity and drift", DRIFTS, tables.drift(cells, found)),
        *_section(f"Against {first.name if first else ''}", DETECTABLE, tables.contrasts(cells, found)),
    ]
    sections += steps.sections(cells, found)
    sections += readiness.sections(plan, source)
    sections += predicted.sections(plan, cells, found)
    sections += published.sections(plan, cells, found)
    if selected.choices:
        sections += _section(
            "Selection", tables.budget(selected, source.store), tables.selection(selected, source.store)
        )
    sections += artifacts.sections(plan, source)
    sections += _section("Cost", "", tables.costs(plan, source.store))
    made_by = [record for stage in plan.stages.values() if (record := source.record(stage)) is not None]
    head = f"{len(plan.branches)} branches; {len(made_by)} of {len(plan.stages)} stages have a record."
    made = Page(
        title=f"{plan.recipe}: SFT objectives, then RL",
        head=" ".join(filter(None, (head, different_packages(made_by)))),
        damaged=tuple(dict.fromkeys(source.damaged)),
        main=tables.main_grid(rows),
        note=" ".join(filter(None, (NOTES, source.reproducible()))),
        figures=() if training is None else (training,),
        sections=tuple(sections),
    )
    return made, rows


def _section(title: str, text: str, grid: Grid) -> list[Section]:
    """One section, or none if its table is empty."""
    return [Section(title, text, (grid,))] if grid.rows and grid.columns else []
