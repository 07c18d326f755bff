"""Writing the report of a plan, unless it is there already."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from common.files import text_digest, write_text
from launch.graph.plan import Plan, Stage
from launch.graph.select import select
from launch.report import artifacts
from launch.report.folders import folder_of, note_plan, write_index
from launch.report.page import page
from launch.report.render import as_html, as_markdown
from launch.report.source import Source
from launch.store import Corrupt, Store

VERSION = 7


def write_report(plan: Plan, *, as_json: bool = False, output: Path | None = None) -> int:
    """Writes `report.html` (self-contained), `report.md` and its pictures; returns 0.

    They go to the folder of the plan (see `folder_of`), and the store's index lists them; with `output` there, and the
    store is only read. A missing record leaves its cells empty. Nothing is written if the records are the ones of the
    last report. With `as_json` the rows of the main table are printed, with every column.
    """
    store = Store(plan.root)
    selected = select(plan, store)
    plan = selected.plan
    folder = folder_of(plan, store.root) if output is None else output
    made_from = f"<!-- {text_digest(json.dumps(_state(plan, store), sort_keys=True))} -->\n"
    outputs = (folder / "report.html", folder / "report.md")
    if not as_json and all(path.exists() and path.read_text().endswith(made_from) for path in outputs):
        print(f"report: {outputs[0]} (unchanged)")
        return 0
    source = Source(store)
    report, rows = page(selected, source)
    found = {stage.address: source.record(stage) for stage in plan.stages.values()}
    records = {address: record for address, record in found.items() if record is not None}
    for figure in report.every_figure():
        (folder / figure.file).parent.mkdir(parents=True, exist_ok=True)
        write_text(folder / figure.file, figure.svg)
    folder.mkdir(parents=True, exist_ok=True)
    note_plan(plan, folder, len(records))
    write_text(outputs[0], as_html(report, records) + made_from)
    write_text(outputs[1], as_markdown(report) + made_from)
    if output is None:
        write_index(store.root)
    if as_json:
        shown_rows = [{"name": line.name, **{key: asdict(c) for key, c in cells.items()}} for line, cells in rows]
        print(json.dumps(shown_rows, indent=1))
    else:
        print(f"report: {outputs[0]}")
    return 0


def _state(plan: Plan, store: Store) -> dict[str, object]:
    """All that the pages are made from."""
    return {
        "version": VERSION,
        "branches": [[one.name, one.stages, [asdict(model) for model in one.models]] for one in plan.branches],
        "eval": plan.branches[0].recipe.eval.model_dump(mode="json"),
        "records": {fingerprint: _record_of(store, stage) for fingerprint, stage in plan.stages.items()},
        "shown": artifacts.shown(plan),
        "attempts": len([row for row in store.costs() if row["fingerprint"] in plan.stages]),
    }


def _record_of(store: Store, stage: Stage) -> str | None:
    try:
        record = store.find(stage)
    except Corrupt as error:
        return str(error)
    return None if record is None else f"{record.host} {record.started} {record.attempt}"
