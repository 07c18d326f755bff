"""Printed tables in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launch.published.cells import Printed, printed

OFF = "*"


def print_tables(paper: str, tables: Sequence[str]) -> None:
    """Prints tables of a paper, one for each model and data set; `*` marks a value that is off its own grid."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    cells = [cell for cell in printed(paper) if cell.table in tables]
    blocks = dict.fromkeys((cell.table, cell.model, cell.dataset) for cell in cells)
    for block in blocks:
        _print_block(console, [one for one in cells if (one.table, one.model, one.dataset) == block])
    if any(cell.off_grid for cell in cells):
        console.print(f"{OFF} no share of as many answers as the paper says that it counts", markup=False)
    if any(not cell.comparable for cell in cells):
        console.print("- in front: not compared with a run (an illustration, a count or a difference)", markup=False)


def _print_block(console: Console, cells: Sequence[Printed]) -> None:
    first = cells[0]
    title = ", ".join(filter(None, (f"{first.paper} {first.table}", first.model, first.dataset)))
    columns = list(dict.fromkeys(f"{cell.benchmark} {cell.metric}".strip() for cell in cells))
    table = Table(title=escape(title), title_justify="left")
    table.add_column("method")
    for column in columns:
        table.add_column(escape(column), justify="right")
    for method in dict.fromkeys(cell.method for cell in cells):
        found = {f"{cell.benchmark} {cell.metric}".strip(): _shown(cell) for cell in cells if cell.method == method}
        table.add_row(escape(method), *(found.get(column, "") for column in columns))
    console.print(table)


def _shown(cell: Printed) -> str:
    return ("" if cell.comparable else "- ") + cell.value + (OFF if cell.off_grid else "")
