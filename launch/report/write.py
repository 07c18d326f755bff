"""Writing the report of a plan, unless it is there already."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common.files import text_digest, write_text
from launch.graph.plan import Plan, Stage
from launch.graph.select import select
from launch.report import artifacts
from launch.report.folders import folder_of, note_plan, write_index
from launch.report.lines import Line
from launch.report.page import page
from launch.report.parts import Cell
from launch.report.render import as_html, as_markdown
from launch.report.source import Source
from launch.store import Corrupt, Store

VERSION = 8


LEFT_OUT = ("head", "small", "p", "best")  # of a cell, what --json does not print: how it looks


@dataclass(frozen=True)
class Written:
    """A report: its HTML, the digest of all that it was made from, whether it was written now, and the main rows."""

    path: Path
    made_from: str
    new: bool
    rows: Sequence[tuple[Line, dict[str, Cell]]] = ()


def write_report(plan: Plan, *, as_json: bool = False, output: Path | None = None) -> int:
    """Writes `report.html` (self-contained), `report.md`, its pictures and the pages of analyses; returns 0.

    They go to the folder of the plan (see `folder_of`), and the store's index lists them; with `output` there, and the
    store is only read. A missing record leaves its cells empty. Nothing is written if the records are the ones of the
    last report. With `as_json` the rows of the main table are printed, with every column.
    """
    found = write(plan, output, again=as_json)
    if as_json:
        print(json.dumps([{"name": line.name, **_printed(cells)} for line, cells in found.rows], indent=1))
    else:
        print(f"report: {found.path}{'' if found.new else ' (unchanged)'}")
    return 0


def _printed(cells: Mapping[str, Cell]) -> dict[str, dict[str, object]]:
    return {key: {k: v for k, v in asdict(one).items() if k not in LEFT_OUT} for key, one in cells.items()}


def write(plan: Plan, output: Path | None = None, *, again: bool = False) -> Written:
    """Writes the report of a plan as `write_report` does, and says nothing; `again`: even if it is there already."""
    store = Store(plan.root)
    selected = select(plan, store)
    whole, plan = plan, selected.plan
    folder = folder_of(plan, store.root) if output is None else output
    digest = text_digest(json.dumps(_state(plan, store, whole), sort_keys=True))
    made_from = f"<!-- {digest} -->\n"
    outputs = (folder / "report.html", folder / "report.md")
    if not again and all(path.exists() and path.read_text().endswith(made_from) for path in outputs):
        return Written(outputs[0], digest, False)
    source = Source(store)
    report, rows = page(selected, source, whole)
    found = {stage.address: source.record(stage) for stage in plan.stages.values()}
    records = {address: record for address, record in found.items() if record is not None}
    folder.mkdir(parents=True, exist_ok=True)
    for figure in report.every_figure():
        (folder / figure.file).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / figure.file, figure.svg)
    for link in (link for section in report.sections for link in section.links):
        (folder / link.file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(link.source, folder / link.file)
    note_plan(plan, folder, len(records))
    write_text(outputs[1], as_markdown(report) + made_from)
    write_text(outputs[0], as_html(report, records) + made_from)
    if output is None:
        write_index(store.root)
    return Written(outputs[0], digest, True, rows)


def _state(plan: Plan, store: Store, whole: Plan) -> dict[str, object]:
    """All that the pages are made from: of the plan, and of what selection left out of the `whole` one."""
    stages = {**whole.stages, **plan.stages}
    return {
        "version": VERSION,
        "branches": [[one.name, one.stages, [asdict(model) for model in one.models]] for one in plan.branches],
        "eval": plan.branches[0].recipe.eval.model_dump(mode="json"),
        "selection": plan.branches[0].recipe.selection.model_dump(mode="json"),
        "records": {fingerprint: _record_of(store, stage) for fingerprint, stage in stages.items()},
        "shown": artifacts.shown(plan),
        "attempts": len([row for row in store.costs() if row["fingerprint"] in stages]),
    }


def _record_of(store: Store, stage: Stage) -> str | None:
    try:
        record = store.find(stage)
    except Corrupt as error:
        return str(error)
    return None if record is None else f"{record.host} {record.started} {record.attempt}"
