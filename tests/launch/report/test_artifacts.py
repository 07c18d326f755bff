from __future__ import annotations

import json
from urllib.parse import unquote

import pytest
import toy
from measured import experiment, fill, publish

from launch.report import artifacts
from launch.report.write import write_report
from launch.store import Store

SVG = '<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0"/></svg>\n'
TABLE = {
    "title": "Entropies",
    "columns": ["model", "share", "nothing", "kept"],
    "rows": [["base", 0.123456, None, True], ["a|b", 2, None, None]],
    "note": "Of all tokens.",
}


@pytest.fixture
def analysed(tmp_path, monkeypatch):
    """A plan with a stage of a kind that shows tables, and what publishes it."""
    extra = toy.steps("histogram", "survey")
    plan = experiment(tmp_path)
    plan.stages[extra.fingerprint] = extra
    monkeypatch.setattr(artifacts, "shown", lambda plan: {"survey": ("tables/*.json",)})

    def write(tables, findings=None, figures=()):
        def files(folder):
            for place in ("tables", "figures"):
                (folder / place).mkdir()
            for name, table in tables.items():
                (folder / "tables" / f"{name}.json").write_text(json.dumps(table))
            for name in figures:
                (folder / "figures" / f"{name}.svg").write_text(SVG)
                (folder / "figures" / f"{name}.png").write_bytes(b"png")
            if findings is not None:
                (folder / "findings.json").write_text(json.dumps(findings))

        publish(Store(plan.root), extra, files)

    return plan, extra, write


def test_tables_and_figures_of_any_stage_are_shown_with_what_was_found(tmp_path, analysed, parsed, footnotes):
    plan, extra, write = analysed
    fill_without(plan, extra)
    found = {"sentence": "Entropy falls.", "figures": {"shares": "Shares by bin."}}
    write({"entropies": TABLE}, found, figures=("shares", "others"))
    write_report(plan)
    folder = tmp_path / "toy"
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    section = text.split("## survey histogram")[1].split("## Cost")[0]
    for expected in ("Entropy falls.", "### Entropies", "Of all tokens.", "Shares by bin."):
        assert expected in section and expected.removeprefix("### ") in page
    assert section.index("Entropy falls.") < section.index("![shares]") < section.index("### Entropies")
    assert "| model | share | kept |" in section and "| base | 0.1235 | yes |" in section
    assert "| a\\|b | 2 |  |" in section and "nothing" not in section
    for name in ("shares", "others"):
        file = f"figures/survey-histogram-{extra.fingerprint[:16]}-{name}.svg"
        assert f"![{name}]({file})" in section and (folder / file).read_text() == SVG
    sources = parsed(folder).sources
    assert [unquote(one.removeprefix("data:image/svg+xml,")) for one in sources] == [SVG, SVG]
    cited, defined, named = footnotes(folder)
    assert cited == defined and extra.address in named and extra.address in parsed(folder).cited


def test_a_table_without_rows_keeps_its_columns_and_findings_are_not_needed(tmp_path, analysed):
    plan, _, write = analysed
    write({"none": {**TABLE, "rows": []}})
    write_report(plan)
    assert "| model | share | nothing | kept |" in (tmp_path / "toy" / "report.md").read_text()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"title": "x"}, "columns: Field required"),
        ({**TABLE, "rows": [["base", 1]]}, "row 0 has 2 values for 4 columns"),
        ([], "file: Input should be a valid dictionary"),
    ],
)
def test_a_file_that_is_no_table_is_named_and_the_rest_is_shown(tmp_path, analysed, table, said):
    plan, _, write = analysed
    write({"entropies": TABLE, "wrong": table})
    write_report(plan)
    text = (tmp_path / "toy" / "report.md").read_text()
    assert said in text and "wrong.json" in text and "### Entropies" in text


def test_a_changed_table_is_not_shown(tmp_path, analysed):
    plan, extra, write = analysed
    write({"entropies": TABLE})
    path = Store(plan.root).directory(extra) / "tables" / "entropies.json"
    path.write_text(path.read_text().replace("0.123456", "0.923456"))
    write_report(plan)
    text = (tmp_path / "toy" / "report.md").read_text()
    assert "entropies.json differs from its record" in text and "### Entropies" not in text


def test_stages_that_show_nothing_have_no_section(tmp_path):
    plan = experiment(tmp_path)
    fill(plan)
    assert all(artifacts.shown(plan)[stage.kind] == () for stage in plan.stages.values())
    write_report(plan)
    assert "## measure" not in (tmp_path / "toy" / "report.md").read_text()


def fill_without(plan, extra):
    del plan.stages[extra.fingerprint]
    fill(plan)
    plan.stages[extra.fingerprint] = extra
