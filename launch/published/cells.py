"""The printed cells of a paper, `recipes/<paper>/published.csv`, and those that a branch of a recipe stands for."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from common.errors import ConfigError
from launch.published.names import off_grid, our_scores
from launch.recipe.library import PAPERS, RECIPES, locate
from launch.recipe.published import COLUMNS

FILE = "published.csv"


@dataclass(frozen=True)
class Printed:
    """One cell as it is printed. comparable: whether it is a score or cost that a run of ours has, too."""

    paper: str
    table: str
    model: str
    dataset: str
    method: str
    benchmark: str
    metric: str
    value: str
    comparable: bool
    note: str

    @property
    def scores(self) -> tuple[tuple[str, str], ...]:
        """The (benchmark or task, metric) pairs of ours whose mean it is; () for none."""
        return our_scores(self.paper, self.table, self.benchmark, self.metric) if self.comparable else ()

    @property
    def off_grid(self) -> bool:
        """Whether its value cannot be the share of right answers that it claims to be."""
        return off_grid(self.paper, self.scores, self.value)


@cache
def printed(paper: str) -> tuple[Printed, ...]:
    """All cells of a paper, in its order. Raises ConfigError for an unknown paper."""
    if paper not in PAPERS:
        raise ConfigError(f"{paper}: no paper of this package; allowed: {', '.join(PAPERS)}")
    with (RECIPES / paper / FILE).open(encoding="utf-8", newline="") as stream:
        return tuple(
            Printed(**{**row, "paper": paper, "comparable": row["comparable"] == "yes"})  # type: ignore[arg-type]
            for row in csv.DictReader(stream)
        )


def paper_of(recipe: str) -> str | None:
    """The paper that a recipe is of."""
    paper = recipe.partition("/")[0]
    return paper if paper in PAPERS else None


def tables_of(wanted: str) -> tuple[str, list[str]]:
    """The paper and its tables that `lp_sft`, `lp_sft/t2` or a recipe's name asks for.

    Raises ConfigError (one line) for an unknown one.
    """
    paper, _, rest = wanted.partition("/")
    cells = printed(paper)
    known = list(dict.fromkeys(cell.table for cell in cells))
    if not rest:
        return paper, known
    named = [table for table in known if table.lower() == rest.lower()]
    if named:
        return paper, named
    from launch.recipe.compose import RecipeError, branches

    try:
        locate(wanted)
        first = next(iter(branches(wanted, [])))
    except RecipeError:
        allowed = f"{', '.join(known)}, or one of its recipes"
        raise ConfigError(f"{wanted}: no table of {paper}; allowed: {allowed}") from None
    return paper, [table for table in first.recipe.published.tables if table in known]


def row_of(section: Any, assignments: Sequence[str], phase: str) -> dict[str, str]:
    """The columns of published.csv that a branch stands for: section is the recipe's `published`, assignments those of
    the branch (objective=dft), phase SFT, RL or base. {} where it stands for none."""
    found = dict(section.row)
    for text in assignments:
        found |= section.names.get(text, {})
    if phase == "base":
        if section.base is None:
            return {}
        found |= section.base
    try:
        return {column: _filled(found[column], {**found, "phase": phase}) for column in COLUMNS if column in found}
    except KeyError:
        return {}


def _filled(text: str, values: Mapping[str, str]) -> str:
    """A text whose {names} are replaced by values, which may hold names in turn. Raises KeyError."""
    for _ in values:
        text = text.format(**values)
    return text


def matching(paper: str, section: Any, assignments: Sequence[str], phase: str) -> list[Printed]:
    """The printed cells of a branch after `phase`."""
    row = row_of(section, assignments, phase)
    if not row.get("method"):
        return []
    return [
        cell
        for cell in printed(paper)
        if cell.table in section.tables and all(getattr(cell, name) == value for name, value in row.items())
    ]
