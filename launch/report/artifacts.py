"""Tables and figures that stages left in their artifacts, shown without knowing what the stages are."""

from __future__ import annotations

import math
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from common.files import read_json
from launch import stages
from launch.graph.plan import Plan, Stage
from launch.report.parts import Cell, Figure, Grid, Link, Section, grid
from launch.report.source import Source

FIGURES = "figures/*.svg"
PAGES = "pages/*.html"
FINDINGS = "findings.json"


class Table(BaseModel):
    """A table file: a row for each list of `rows`, a value for each of `columns`, the first of which names the row."""

    title: str
    columns: list[str] = Field(min_length=1)
    rows: list[list[str | bool | int | float | None]]
    note: str = ""

    @model_validator(mode="after")
    def _rectangular(self) -> Table:
        for place, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {place} has {len(row)} values for {len(self.columns)} columns")
        return self


class Findings(BaseModel):
    """What an artifact says about its tables and figures: a sentence, and captions by the figures' names."""

    sentence: str = ""
    figures: dict[str, str] = {}


def shown(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Kind of stage -> patterns of the table files in its artifacts that the report shows."""
    return {kind.name: kind.tables for kind in stages.in_order(plan.own_stages)}


def sections(plan: Plan, source: Source) -> list[Section]:
    """A section for every published stage that has tables to show, with the figures and pages beside them.

    A file that does not look like a table is left out and noted among the source's damaged ones.
    """
    found, tables = [], shown(plan)
    for stage in plan.stages.values():
        patterns = tables.get(stage.kind, ())
        if not patterns or source.record(stage) is None:
            continue
        findings = _checked(source, stage, FINDINGS, Findings) or Findings()
        grids = tuple(one for name in _names(source, stage, patterns) if (one := _table(source, stage, name)))
        figures = tuple(
            one for name in _names(source, stage, (FIGURES,)) if (one := _figure(source, stage, name, findings))
        )
        links = tuple(one for name in _names(source, stage, (PAGES,)) if (one := _link(source, stage, name)))
        if grids or figures or links:
            found.append(Section(stage.name, findings.sentence, grids, figures, (stage.address,), links))
    return found


def _names(source: Source, stage: Stage, patterns: tuple[str, ...]) -> list[str]:
    record, directory = source.record(stage), source.store.directory(stage)
    there = {path.relative_to(directory).as_posix() for pattern in patterns for path in directory.glob(pattern)}
    return sorted(there & record.payload.keys()) if record is not None else []


def _checked(source: Source, stage: Stage, name: str, kind: type[Any]) -> Any:
    path = source.file(stage, name)
    if path is None:
        return None
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        source.damaged.append(f"{path}: {_first(error)}; mend the stage that writes it and raise its version")
        return None


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}"


def _table(source: Source, stage: Stage, name: str) -> Grid | None:
    table = _checked(source, stage, name, Table)
    if table is None:
        return None
    rows = [(_text(row[0]), [Cell(_text(value), _number(value)) for value in row[1:]]) for row in table.rows]
    return grid(table.columns[1:], rows, head=table.columns[0], title=table.title, note=table.note)


def _figure(source: Source, stage: Stage, name: str, findings: Findings) -> Figure | None:
    path = source.file(stage, name)
    if path is None:
        return None
    stem = PurePosixPath(name).stem
    file = _file("figures", stage, f"{stem}.svg")
    return Figure(stem, file, path.read_text(encoding="utf-8"), findings.figures.get(stem, ""))


def _link(source: Source, stage: Stage, name: str) -> Link | None:
    """A page, to be copied beside the report so that its folder can be moved."""
    path = source.file(stage, name)
    if path is None:
        return None
    stem = PurePosixPath(name).stem
    return Link(stem, _file("pages", stage, f"{stem}.html"), path)


def _file(folder: str, stage: Stage, name: str) -> str:
    return PurePosixPath(folder, f"{stage.kind}-{stage.label}-{stage.fingerprint[:16]}-{name}").as_posix()


def _number(value: str | bool | float | None) -> float | None:
    """What a value is sorted by."""
    return None if value is None or isinstance(value, str | bool) or not math.isfinite(value) else float(value)


def _text(value: str | bool | float | None) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
