from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from measured import experiment, fill

from launch.graph.builder import make_plan
from launch.report.folders import folder_of
from launch.report.versions import different_packages
from launch.report.write import write_report


def test_pages_hold_pictures_and_every_citation_leads_to_its_record(tmp_path, parsed, footnotes):
    plan = experiment(tmp_path)
    fill(plan)
    write_report(plan)
    folder = tmp_path / "toy"
    page = parsed(folder)
    addresses = {stage.address for stage in plan.stages.values()}
    assert page.links and {link.removeprefix("#") for link in page.links} <= page.ids
    assert page.cited == addresses and set(page.of_record.values()) == addresses
    assert page.sources == [] and (folder / "report.html").read_text().count("<svg ") == 3
    cited, defined, named = footnotes(folder)
    assert cited == defined and named == addresses and len(named) == 2 + 3 * 4
    pictures = re.findall(r"\]\((\w+\.svg)\)", (folder / "report.md").read_text())
    assert pictures == ["scores.svg", "training.svg", "losses.svg"]
    for picture in pictures:
        assert (folder / picture).read_text().startswith("<svg")


@pytest.mark.parametrize("reproducible", [True, False])
def test_the_pages_say_if_responses_do_not_repeat(tmp_path, reproducible):
    plan = experiment(tmp_path)
    fill(plan, reproducible)
    write_report(plan)
    for page in ("report.html", "report.md"):
        assert ("a second run of the same seed" in (tmp_path / "toy" / page).read_text()) is not reproducible


def test_an_unchanged_report_is_left_alone(tmp_path, capsys):
    plan = experiment(tmp_path)
    fill(plan)
    write_report(plan)
    path = tmp_path / "toy" / "report.html"
    before = path.stat().st_mtime_ns, path.read_bytes()
    capsys.readouterr()
    write_report(plan)
    assert "(unchanged)" in capsys.readouterr().out
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    path.unlink()
    write_report(plan)
    assert path.read_bytes() == before[1]


def test_columns_that_no_row_has_a_value_for_are_left_out(tmp_path, parsed):
    plan = experiment(tmp_path, rl=False, names=("target", "held_out"))
    fill(plan)
    write_report(plan)
    headings = parsed(tmp_path / "toy").headings
    assert {"SFT pass@1", "token entropy", "peak memory"} <= set(headings)
    left_out = ("RL pass@1", "RL general pass@1", "gain from RL, pass@1", "SFT general pass@1", "KL from base")
    text = (tmp_path / "toy" / "report.md").read_text()
    for title in left_out:
        assert title not in headings and f"| {title} |" not in text
    assert sorted(path.name for path in (tmp_path / "toy").glob("*.svg")) == ["losses.svg", "scores.svg"]


def test_what_names_hold_is_text_in_both_pages(tmp_path):
    plan = experiment(tmp_path, objectives=("a|<b>&",))
    write_report(plan)
    assert "a|&lt;b&gt;&amp;" in (tmp_path / "toy" / "report.html").read_text()
    assert "| a\\|<b>& " in (tmp_path / "toy" / "report.md").read_text()


def test_a_plan_that_measures_nothing_shows_what_it_took(tmp_path):
    plan = experiment(tmp_path, names=())
    fill(plan)
    write_report(plan)
    text = (tmp_path / "toy" / "report.md").read_text()
    assert "base model" not in text and "Scores by benchmark" not in text
    assert re.search(r"\| dft \| 10\.0 s \+ 10\.0 s\[\^1\] \| 2\.00 GB\[\^1\] \|", text)
    assert "## Scores" not in text and not (tmp_path / "toy" / "scores.svg").exists()


def test_every_plan_has_its_own_report_and_the_index_lists_them(tmp_path, capsys):
    small = ["rl.enabled=false", "eval.enabled=false"]
    plans = [
        make_plan("microworld", [*overrides, f"run.root={tmp_path}"])
        for overrides in ([], ["objective=sft,dft"], ["objective=sft,dft", *small], ["sft.lr=1e-3", *small])
    ]
    for plan in plans:
        assert write_report(plan) == 0
    folders = [folder_of(plan, tmp_path) for plan in plans]
    assert len(set(folders)) == 4 and folders[0] == tmp_path / "microworld"
    assert all((folder / "report.html").is_file() for folder in folders)
    assert folders[1].name.startswith("objective=sft,dft-")
    index = (tmp_path / "index.html").read_text()
    links = re.findall(r'href="([^"]+)"', index)
    assert {(tmp_path / unquote(link)).parent for link in links} == set(folders)
    assert "sft.lr=1e-3" in index
    before = folders[0].joinpath("report.html").read_bytes()
    write_report(plans[3])
    assert folders[0].joinpath("report.html").read_bytes() == before
    again = make_plan("microworld", [f"run.root={tmp_path}", "platform.nodes=2", "run.retries=0"])
    assert folder_of(again, tmp_path) == folders[0], "how a plan is run makes it no other plan"
    chosen = make_plan("microworld", [f"run.root={tmp_path}", "sft.lr=1e-3,1e-4", "selection.fields=[sft.lr]"])
    assert folder_of(chosen, tmp_path) not in folders


def test_a_recipe_called_as_a_stage_does_not_write_among_its_artifacts(tmp_path):
    plan = replace(make_plan("microworld", [f"run.root={tmp_path}"]), recipe="sft")
    assert folder_of(plan, tmp_path) == tmp_path / "sft.recipe"


def test_different_package_versions_are_named():
    def record(**packages):
        return SimpleNamespace(packages=packages)

    assert different_packages([record(torch="2.11", verl="1"), record(torch="2.11", verl="1")]) == ""
    said = different_packages([record(torch="2.11", peft="1"), record(torch="2.11"), record(torch="2.12")])
    assert "torch 2.11 (2 stages), 2.12 (1 stages)" in said and "peft 1 (1 stages), none (2 stages)" in said
