"""Ours beside the papers' numbers, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from launch.graph.plan import Plan
from launch.published.cells import Printed, matching, paper_of
from launch.report.cells import Cells
from launch.report.lines import PHASES, Line
from launch.report.parts import Cell, Grid, Row, Section, estimate, grid

COLUMNS = ("ours", "published", "gap", "")
NOTE = (
    "In percent. The gap is ours less theirs, with our 95% interval over problems; theirs is printed without one. A "
    "value off its grid is no share of as many answers as the paper says that it counts."
)


def sections(plan: Plan, cells: Cells, lines: Sequence[Line]) -> list[Section]:
    """The comparison with the paper that the recipe is of; none for another recipe."""
    paper, section = paper_of(plan.recipe), plan.branches[0].recipe.published
    if paper is None:
        return []
    left = [f"Open in the paper, and taken here: {'; '.join(section.open)}."] if section.open else []
    table = _grid(plan, cells, lines, paper)
    grids = (table,) if table.rows else ()
    text, note = " ".join(left), NOTE if grids else ""
    title = f"Against the paper ({', '.join(section.tables)})" if section.tables else "Against the paper"
    return [Section(title, text, grids, note=note)] if text or note else []


def _grid(plan: Plan, cells: Cells, lines: Sequence[Line], paper: str) -> Grid:
    branches = {branch.name: branch for branch in plan.branches}
    rows: list[Row] = []
    for line in lines:
        branch = branches.get(line.members[0].branch)
        if branch is None or line.from_base:
            continue
        phases = {"sft": "base"} if line.is_base else PHASES
        for phase, said in phases.items():
            if not any(phase in member.models for member in line.members):
                continue
            for printed in matching(paper, branch.recipe.published, branch.overrides, said):
                title = f"{line.name}{'' if line.is_base else f' {said}'}: {printed.benchmark} {printed.metric}"
                rows.append((title, _row(cells, line, phase, printed)))
    return grid(COLUMNS, rows)


def _row(cells: Cells, line: Line, phase: str, printed: Printed) -> tuple[Cell, ...]:
    ours = mean([cells.metric(line, phase, *score) for score in printed.scores])
    theirs = float(printed.value)
    remark = "off its grid" if printed.off_grid else ""
    if ours.value is None or ours.low is None or ours.high is None:
        return Cell(), Cell(printed.value), Cell(), Cell(remark)
    scale = 1.0 if any(metric == "self_bleu" for _, metric in printed.scores) else 100.0
    value, low, high = (scale * one for one in (ours.value, ours.low, ours.high))
    shown = estimate(value, low, high, ours.records, places=2)
    gap = estimate(value - theirs, low - theirs, high - theirs, ours.records, places=2, signed=True)
    return (
        replace(shown, value=ours.value, low=ours.low, high=ours.high),
        Cell(printed.value, theirs),
        gap,
        Cell(remark),
    )


def mean(found: Sequence[Cell]) -> Cell:
    """The mean of scores of different problems, with the interval of independent ones; empty if one is missing."""
    if not found or any(cell.value is None or cell.low is None or cell.high is None for cell in found):
        return Cell()
    count = len(found)
    value = sum(cell.value or 0.0 for cell in found) / count
    below = sum(((cell.value or 0.0) - (cell.low or 0.0)) ** 2 for cell in found) ** 0.5 / count
    above = sum(((cell.high or 0.0) - (cell.value or 0.0)) ** 2 for cell in found) ** 0.5 / count
    records = tuple(dict.fromkeys(address for cell in found for address in cell.records))
    return Cell(f"{value:.3f}", value, value - below, value + above, records)
