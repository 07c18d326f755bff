"""Paired comparisons between lines: each with the first one, and the best of a column with all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from evaluation.statistics import Paired, holm
from launch.report.cells import Cells, detectable, over_seeds_interval
from launch.report.lines import Line, Model
from launch.report.parts import Cell, Grid, grid

COLUMNS = ("difference in pass@1, over problems", "over problems and seeds", "p (Holm)", "detectable")
LEVEL = 0.05  # of the tests, after Holm
Place = tuple[Line, str]  # a line and the phase after which it is looked at


@dataclass(frozen=True)
class Contrast:
    """A line less the reference, over the seeds that both have.

    problems: with its interval over problems, each averaged over seeds; seeds: over problems and seeds, empty with one.
    p: of the first, by Holm over all contrasts. tested: what else was found of the first.
    """

    line: Line
    problems: Cell
    seeds: Cell
    tested: Paired
    p: float = 1.0

    @property
    def certain(self) -> bool:
        """Whether the line differs from the reference, by the test and over seeds too, where there are several."""
        return self.p <= LEVEL and not _holds_zero(self.seeds)


def _holds_zero(cell: Cell) -> bool:
    """Whether an interval reaches zero; an empty cell has none that does."""
    if cell.value is None:
        return False
    return cell.low is None or cell.high is None or cell.low <= 0 <= cell.high


def reference(lines: Sequence[Line]) -> Line | None:
    """The line that the others are compared with: the first one that was fine-tuned."""
    return next((line for line in lines if not line.is_base and not line.from_base), None)


def contrasts(cells: Cells, lines: Sequence[Line]) -> list[Contrast]:
    """Every line against the reference in pass@1 on the target, where the walk ended (after RL if there is RL)."""
    first = reference(lines)
    found: list[Contrast] = []
    for line in lines:
        if first is None or line is first or line.is_base:
            continue
        pairs = [(a.last, b.last) for a in first.members for b in line.members if a.seed == b.seed]
        one = _compared(cells, line, pairs, cells.settings.target)
        if one is not None:
            found.append(one)
    return [replace(one, p=p) for one, p in zip(found, holm([one.tested.p for one in found]), strict=True)]


def _compared(
    cells: Cells, line: Line, pairs: Sequence[tuple[Model | None, Model | None]], benchmark: str
) -> Contrast | None:
    scored = [(pair, [cells.source.scores(model, benchmark, "sampled") for model in pair]) for pair in pairs]
    scored = [(pair, scores) for pair, scores in scored if all(scores)]
    if not scored or len({frozenset(side) for _, scores in scored for side in scores}) > 1:
        return None
    problems = sorted(scored[0][1][0])
    means = [[sum(scores[side][p] for _, scores in scored) / len(scored) for p in problems] for side in (0, 1)]
    records = tuple(model.measures[benchmark].address for pair, _ in scored for model in pair if model is not None)
    over_problems, tested = cells.paired(means[0], means[1], records)
    shifts = [[b[p] - a[p] for p in problems] for _, (a, b) in scored]
    return Contrast(line, over_problems, over_seeds_interval(shifts, records), tested)


def table(found: Sequence[Contrast]) -> Grid:
    """A row for each contrast: both differences, Holm's p-value and the smallest difference that could be found."""
    return grid(
        COLUMNS,
        [
            (
                one.line.name,
                [
                    one.problems,
                    one.seeds,
                    Cell(f"{one.p:.3f}", one.p, records=one.problems.records),
                    detectable(one.tested.detectable, one.problems.records),
                ],
            )
            for one in found
        ],
    )


def with_best(cells: Cells, places: Sequence[Place], column: Sequence[Cell], benchmark: str) -> list[Cell]:
    """A column of pass@1 of a benchmark, a cell for each place, in which the largest is marked as the best if tests
    tell it from every other: paired by problem, by Holm over the column, and over seeds too where both have several.
    """
    scored = [place for place, cell in enumerate(column) if cell.value is not None]
    scored.sort(key=lambda place: -(column[place].value or 0.0))
    if len(scored) < 2:
        return list(column)
    best, *others = scored
    p_values: list[float] = []
    for other in others:  # the closest first: it is the one that tests do not tell apart
        one = _compared(cells, places[best][0], _pairs(places[other], places[best]), benchmark)
        if one is None or one.tested.p > LEVEL or one.tested.difference <= 0 or _holds_zero(one.seeds):
            return list(column)
        p_values.append(one.tested.p)
    if max(holm(p_values)) > LEVEL:
        return list(column)
    return [replace(cell, best=place == best) for place, cell in enumerate(column)]


def _pairs(first: Place, second: Place) -> list[tuple[Model | None, Model | None]]:
    """The models of two places with the same seed; of one that has no seeds, the base, with every one of the other."""
    (a, before), (b, after) = first, second
    shared = [(one, other) for one in a.members for other in b.members if one.seed == other.seed]
    if not shared and (a.is_base or b.is_base):
        shared = [(one, other) for one in a.members for other in b.members]
    return [(one.models.get(before), other.models.get(after)) for one, other in shared]
