"""What a page is made of: cells, tables, figures, sections. No format and no artifact is known here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Cell:
    """A number as shown, its value and interval, and the addresses of the records it was computed from.

    text: all of it in one line. head and small: the same in parts, the number and what stands below it, smaller; no
    head: the text stands as it is. p: of the test behind it, if there is one. best: whether tests tell it from every
    other cell of its column.
    """

    text: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    records: tuple[str, ...] = ()
    head: str = ""
    small: tuple[str, ...] = ()
    p: float | None = None
    best: bool = False


def estimate(
    value: float,
    low: float,
    high: float,
    records: tuple[str, ...] = (),
    *,
    places: int = 3,
    signed: bool = False,
    deviation: float | None = None,
    notes: Sequence[str] = (),
    p: float | None = None,
) -> Cell:
    """A number with its interval and, over seeds, its standard deviation; notes follow.

    What is zero in every part has no interval, and none is shown.
    """
    number = f"{'+' if signed else ''}.{places}f"
    head = f"{value:{number}}"
    apart = () if deviation is None else (f"± {deviation:.{places}f}",)
    interval = () if value == low == high == 0 else (f"{low:{number}} to {high:{number}}",)
    text = " ".join([head, *apart, *(f"({one})" for one in interval)])
    bounds = (low, high) if interval else (None, None)
    return Cell("; ".join([text, *notes]), value, *bounds, records, head, (*apart, *interval, *notes), p)


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
    """A picture: its name, the file beside report.md that holds it, its SVG text, and what it shows.

    ours: drawn by this package in the page's own colours (see `drawing`), and not brought along by an artifact.
    """

    name: str
    file: str
    svg: str
    caption: str = ""
    ours: bool = False


@dataclass(frozen=True)
class Link:
    """A page that an artifact holds: its title, where its copy lies beside the report, and the file to copy."""

    title: str
    file: str
    source: Path


@dataclass(frozen=True)
class Section:
    """A part of the page under its own title.

    text: what was found. note: how to read it, below. records: those that the whole section was made from.
    """

    title: str
    text: str = ""
    grids: tuple[Grid, ...] = ()
    figures: tuple[Figure, ...] = ()
    records: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Key:
    """How a line is marked wherever it appears: number of its colour, of its shape, and of its kind of line."""

    colour: int
    shape: int
    dash: int = 0


@dataclass(frozen=True)
class Page:
    """The whole report.

    facts: what was compared, a label and its text each. answer: what can be said, in sentences. damaged: artifacts that
    could not be read, and other warnings, one sentence each. notes: on how far to trust it. keys: by what rows are
    called, how their lines are marked.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    answer: tuple[str, ...]
    damaged: tuple[str, ...]
    picture: Figure | None
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()
    keys: Mapping[str, Key] = field(default_factory=dict)

    def every_figure(self) -> Iterator[Figure]:
        """All pictures, in the order of the page."""
        if self.picture is not None:
            yield self.picture
        for section in self.sections:
            yield from section.figures

    def citations(self) -> dict[tuple[str, ...], int]:
        """Every set of records that something on the page was computed from, numbered from 1 in the page's order."""
        found: dict[tuple[str, ...], None] = {}
        for section in self.sections:
            cells = (cell for one in section.grids for _, cells in one.rows for cell in cells)
            for records in (section.records, *(cell.records for cell in cells)):
                if records:
                    found[records] = None
        return {records: number for number, records in enumerate(found, start=1)}
