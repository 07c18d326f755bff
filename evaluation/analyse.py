"""The `analyse` stage: runs one analysis over the artifacts of several branches."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import BaseModel

from common.errors import ConfigError
from common.files import write_json, write_text
from evaluation import analyses
from evaluation.analyses import Analysis, Figure, Given, Table
from evaluation.analyses._progress import listening

Report = Callable[..., None]


def run(settings: Any, inputs: dict[str, Path], output: Path, scratch: Path, report: Report) -> None:
    """Write the findings of an analysis.

    settings: `analysis`, its name or dotted path; `settings`, a mapping for its section; `given`, a list that says what
    each input is: {input, kind, line, seed, model, name, objective} (see `analyses.Given`); `target`, the benchmark of
    the SFT domain. Writes tables/<name>.json ({title, columns, rows, note}) and .csv, figures/<name>.svg and .png,
    data/<name>.parquet, pages/<name>.html and findings.json ({sentence, figures: {name: caption}, tables, data, pages:
    [names]}). The same findings are the same bytes. Raises ConfigError for an unknown analysis, settings that are not
    its own, an input that is not given, and where there is nothing to analyse.
    """
    analysis = analyses.load(settings.analysis)
    own = analyses.check_settings(settings.analysis, settings.settings)
    if getattr(own, "target", None) == "":
        own = own.model_copy(update={"target": settings.target})
    given = _given(analysis, settings.given, inputs)
    report(0, 1)
    with listening(report):
        findings = analysis.run(given, own)
    total = len(findings.tables) + len(findings.figures)
    shown = {"tables": findings.tables, "figures": findings.figures, "data": findings.data, "pages": findings.pages}
    for folder, found in shown.items():
        if found:
            (output / folder).mkdir()
    for done, (name, table) in enumerate(findings.tables.items(), start=1):
        _write_table(output / "tables", name, table)
        report(done, total)
    for done, (name, figure) in enumerate(findings.figures.items(), start=len(findings.tables) + 1):
        _write_figure(output / "figures", name, figure)
        report(done, total)
    for name, data in findings.data.items():
        pq.write_table(data, output / "data" / f"{name}.parquet", compression="zstd")
    for name, page in findings.pages.items():
        write_text(output / "pages" / f"{name}.html", page)
    write_json(
        output / "findings.json",
        {
            "sentence": findings.sentence,
            "figures": {name: figure.caption for name, figure in findings.figures.items()},
            "tables": list(findings.tables),
            "data": list(findings.data),
            "pages": list(findings.pages),
        },
    )


def _given(analysis: Analysis, described: Any, inputs: dict[str, Path]) -> list[Given]:
    found = []
    for one in described:
        fields = one.model_dump() if isinstance(one, BaseModel) else dict(one)
        name = fields.pop("input")
        if name not in inputs:
            raise ConfigError(f"analysis {analysis.name!r}: no input {name!r}; there are {', '.join(inputs) or 'none'}")
        if fields["kind"] in analysis.needs:
            found.append(Given(path=inputs[name], **fields))
    if not found and analysis.needs:
        raise ConfigError(f"analysis {analysis.name!r}: nothing to analyse; it reads {', '.join(analysis.needs)}")
    return found


def _write_table(folder: Path, name: str, table: Table) -> None:
    rows = [list(row) for row in table.rows]
    write_json(
        folder / f"{name}.json",
        {"title": table.title, "columns": list(table.columns), "rows": rows, "note": table.note},
    )
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.columns, *rows])
    write_text(folder / f"{name}.csv", text.getvalue())


def _write_figure(folder: Path, name: str, figure: Figure) -> None:
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    from evaluation.analyses import _style

    with matplotlib.rc_context(_style.STYLE):
        canvas = Canvas(figsize=_style.SIZE)
        figure.draw(canvas)
        canvas.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
        canvas.savefig(folder / f"{name}.png", bbox_inches="tight", dpi=160, metadata={"Software": None})
