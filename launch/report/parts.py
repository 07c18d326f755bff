"""What a page is made of: cells, tables, figures, sections. No format and no artifact is known here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A number as shown, its value and interval, and the addresses of the records it was computed from."""

    text: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    records: tuple[str, ...] = ()


Row = tuple[str, tuple[Cell, ...]]  # what the row is of, and its cells


@dataclass(frozen=True)
class Grid:
    """A table: `head` titles the column of the rows' names, `columns` the others. Build it with `grid`."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    head: str = ""
    title: str = ""
    note: str = ""


def grid(
    columns: Sequence[str], rows: Iterable[tuple[str, Sequence[Cell]]], *, head: str = "", title: str = "", note=""
) -> Grid:
    """A table without the columns that no row has a value for. A table without rows keeps all of its columns."""
    found = [(name, tuple(cells)) for name, cells in rows]
    kept = [place for place in range(len(columns)) if not found or any(cells[place].text for _, cells in found)]
    return Grid(
        tuple(columns[place] for place in kept),
        tuple((name, tuple(cells[place] for place in kept)) for name, cells in found),
        head,
        title,
        note,
    )


@dataclass(frozen=True)
class Figure:
    """A picture: its name, the file beside report.md that holds it, its SVG text, and what it shows."""

    name: str
    file: str
    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page under its own title; `records` are those that the whole section was made from."""

    title: str
    text: str = ""
    grids: tuple[Grid, ...] = ()
    figures: tuple[Figure, ...] = ()
    records: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """The whole report; `damaged` are artifacts that could not be read, one sentence each."""

    title: str
    head: str
    damaged: tuple[str, ...]
    main: Grid
    note: str
    figures: tuple[Figure, ...]
    sections: tuple[Section, ...]

    def every_figure(self) -> Iterator[Figure]:
        """All pictures, in the order of the page."""
        yield from self.figures
        for section in self.sections:
            yield from section.figures

    def citations(self) -> dict[tuple[str, ...], int]:
        """Every set of records that something on the page was computed from, numbered from 1 in the page's order."""
        found: dict[tuple[str, ...], None] = {}
        for section in (Section("", grids=(self.main,)), *self.sections):
            cells = (cell for one in section.grids for _, cells in one.rows for cell in cells)
            for records in (section.records, *(cell.records for cell in cells)):
                if records:
                    found[records] = None
        return {records: number for number, records in enumerate(found, start=1)}
