"""Which rows of the papers' tables a recipe's branches stand for."""

from __future__ import annotations

from launch.recipe.section import Section, runtime

COLUMNS = ("model", "dataset", "method")  # of published.csv, which tell its rows apart


class Published(Section):
    """Rows of `published.csv` beside the recipe: the columns that all branches share, and those that an assignment of
    the sweep stands for. A value may hold {phase}: SFT or RL."""

    tables: list[str] = runtime([], "tables and figures of the paper")
    row: dict[str, str] = runtime({}, "columns of every branch: model, dataset, method")
    names: dict[str, dict[str, str]] = runtime({}, "an assignment of a branch (objective=dft) -> columns of its row")
    base: dict[str, str] | None = runtime(None, "columns of the base model's row")
    open: list[str] = runtime([], "settings that the paper leaves open, and what is taken")
