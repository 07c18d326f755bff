from __future__ import annotations

import json
from urllib.parse import unquote

import pytest
import toy
from measured import experiment, fill, publish

from launch.report import artifacts, render
from launch.report.parts import Figure
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

    def write(tables, findings=None, figures=(), pages=None, large=SVG):
        def files(folder):
            for place in ("tables", "figures", "pages"):
                (folder / place).mkdir()
            for name, table in tables.items():
                (folder / "tables" / f"{name}.json").write_text(json.dumps(table))
            for name in figures:
                (folder / "figures" / f"{name}.svg").write_text(large if name == "large" else SVG)
                (folder / "figures" / f"{name}.png").write_bytes(b"png")
            for name, page in (pages or {}).items():
                (folder / "pages" / f"{name}.html").write_text(page)
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
    section = text.split("## survey histogram")[1].split("[^1]: record")[0]
    for expected in ("Entropy falls.", "### Entropies", "Of all tokens.", "Shares by bin."):
        assert expected in section and expected.removeprefix("### ") in page
    assert section.index("Entropy falls.") < section.index("![shares]") < section.index("### Entropies")
    assert "| model | share | kept |" in section and "| base | 0.1235 | yes |" in section
    assert "| a\\|b | 2 |  |" in section and "nothing" not in section
    for name in ("shares", "others"):
        file = f"figures/survey-histogram-{extra.fingerprint[:16]}-{name}.svg"
        assert f"![{name}]({file})" in section and (folder / file).read_text() == SVG
    sources = parsed(folder).sources
    assert [unquote(one.removeprefix("data:image/svg+xml,")) for one in sources] == [SVG.strip(), SVG.strip()]
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


def test_pages_of_analyses_are_copied_beside_the_report_and_linked(tmp_path, analysed):
    plan, extra, write = analysed
    write({"entropies": TABLE}, pages={"tokens": "<!doctype html><p>every token</p>"})
    write_report(plan)
    folder = tmp_path / "toy"
    file = f"pages/survey-histogram-{extra.fingerprint[:16]}-tokens.html"
    assert (folder / file).read_text() == "<!doctype html><p>every token</p>"
    assert f'<a href="{file}">tokens</a>' in (folder / "report.html").read_text()
    assert f"[tokens]({file})" in (folder / "report.md").read_text()
    assert str(tmp_path) not in (folder / "report.html").read_text(), "the folder can be moved"


def test_pictures_beyond_the_page_s_size_are_linked_the_largest_first(tmp_path, analysed, monkeypatch, parsed):
    plan, extra, write = analysed
    large = SVG.replace("M0 0", "M0 0 " * 200)
    write({"entropies": TABLE}, {"figures": {"large": "All of it."}}, figures=("small", "large"), large=large)
    monkeypatch.setattr(render, "EMBEDDED", 500)
    write_report(plan)
    file = f"figures/survey-histogram-{extra.fingerprint[:16]}-large.svg"
    page = (tmp_path / "toy" / "report.html").read_text()
    assert f'<a href="{file}">' in page and "too large to stand here" in page and "All of it." in page
    assert len(parsed(tmp_path / "toy").sources) == 1 and (tmp_path / "toy" / file).read_text() == large


def test_a_picture_is_embedded_with_fewer_digits_and_no_other_change():
    svg = '<svg>\n<path d="M 1.23456 2.5\nL 100.999999 -0.125"/><g transform="scale(0.015625)"/></svg>'
    (url,) = render._embedded([Figure("one", "one.svg", svg)]).values()
    found = unquote(url.removeprefix("data:image/svg+xml,"))
    assert found == '<svg> <path d="M 1.23 2.5 L 100.99 -0.12"/><g transform="scale(0.015625)"/></svg>'
