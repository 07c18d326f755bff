"""The tables of a study's page come from its folder alone, and a mark that nothing fills is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import ConfigError
from launch.evidence import tables
from launch.evidence.page import fill, tables_of
from launch.evidence.runs import Run, read_csv, write_csv
from tests.launch.evidence.test_claims import FIELDS
from tests.launch.evidence.test_differences import study

DOCS = Path(__file__).parents[3] / "docs"
DESIGN = (
    "{pilot: runs.csv, pairs: [[bb, a]], phase: rl, figure: pass@1, seeds: [3, 6], problems: [64, 128], against: a, "
    "arms: {}, rates: rates.csv, again: again.csv}"
)


@pytest.fixture
def folder(tmp_path):
    runs = [
        Run(
            one.arm,
            one.seed,
            phase,
            one.fingerprint,
            16,
            one.right,
            {"pass@1": sum(one.right) / 16 / 40, "general": 0.5 + shift},
        )
        for one in study(0.1, 0.01, 3, 40, 0)
        for phase, shift in (("sft", 0.0), ("rl", 0.1 * (one.arm == "bb")))
    ]
    runs = [replace(run, measured=f"{run.arm}{run.seed}{run.phase}") for run in runs]
    write_csv(runs, tmp_path / "runs.csv")
    write_csv([replace(runs[0], arm="by another name")], tmp_path / "again.csv")
    (tmp_path / "claims.yaml").write_text(f"- {FIELDS}\n  direction: higher\n".replace("arm: b\n", "arm: bb\n"))
    (tmp_path / "design.yaml").write_text(DESIGN)
    (tmp_path / "rates.csv").write_text("arm,rate,prompt_pass_rate\na,0.001,0.5\na,0.0002,0.25\n")
    return tmp_path


def test_every_table_is_filled_from_the_folder(folder):
    page = folder / "page.md"
    marks = "".join(f"<!-- table: {name} -->\nstale\n<!-- end -->\n" for name in tables_of(folder))
    page.write_text(f"{marks}![](folder/scores.svg) ![](folder/claims.svg)\n")
    fill(page, folder)
    text = page.read_text()
    assert "| arm | 0.0002 | 0.001 |" in text and "| a | 0.250 | **0.500** |" in text
    assert "stale" not in text and "| bb | 3 |" in text and "Fewer than 8 arms" in text
    assert "+0.100 (+0.100 to +0.100), 3 seeds | 0.000 | holds |" in text
    pictures = {name: (folder / f"{name}.svg").read_text() for name in ("scores", "claims")}
    assert ">bb</text>" in pictures["scores"].replace("\n", "") and ">one (higher)</text>" in pictures["claims"]
    assert ">holds</text>" in pictures["claims"] and ">cannot tell</text>" not in pictures["claims"]
    fill(page, folder)
    assert page.read_text() == text
    assert {name: (folder / f"{name}.svg").read_text() for name in pictures} == pictures


def test_runs_that_were_made_again_are_held_against_the_first_ones_of_the_same_stages(folder):
    first = read_csv(folder / "runs.csv")[0]
    shown = tables_of(folder)["again"]().splitlines()[-1]
    assert "+0.000 (" in shown and shown.endswith("| 40 of 40 | yes |") and f"| {first.arm} | {first.seed} |" in shown
    worse = replace(first, right=tuple(max(0, count - 8) for count in first.right))
    write_csv([worse], folder / "again.csv")
    assert tables_of(folder)["again"]().endswith("| no |\n")
    write_csv([replace(first, measured="other")], folder / "again.csv")
    with pytest.raises(ConfigError, match=r"run again, but not among the study's runs"):
        tables_of(folder)["again"]()


def test_a_page_without_results_needs_no_runs(folder):
    (folder / "runs.csv").unlink()
    page = folder / "page.md"
    page.write_text("<!-- table: hypotheses -->\n<!-- end -->\n")
    fill(page, folder)
    assert "| one |" in page.read_text() and not (folder / "scores.svg").exists()


def test_a_page_has_names_of_its_own_for_rows_of_the_report(folder):
    (folder / "design.yaml").write_text(DESIGN.replace("arms: {}", "arms: {bb: short}"))
    (folder / "claims.yaml").write_text((folder / "claims.yaml").read_text().replace("arm: bb", "arm: short"))
    found = tables_of(folder)
    assert "| short | 3 |" in found["arms"]() and "| holds |" in found["claims"]()
    (folder / "design.yaml").write_text(DESIGN.replace("arms: {}", "arms: {other: short}"))
    with pytest.raises(ConfigError, match=r"arms: no row 'other' in the report; allowed: a, bb"):
        tables_of(folder)["arms"]()


def test_wrong_folders_and_pages_are_refused(folder):
    with pytest.raises(ConfigError, match="table other: nothing makes it; allowed: power, rates, arms"):
        tables.fill("<!-- table: other -->\n<!-- end -->\n", tables_of(folder))
    (folder / "again.csv").unlink()
    with pytest.raises(ConfigError, match=r"again.csv: missing, and a table of the page is made from it"):
        tables_of(folder)["again"]()
    (folder / "design.yaml").write_text(DESIGN.replace("against: a", "against: z"))
    with pytest.raises(ConfigError, match="against: no arm 'z'; allowed: a, bb"):
        tables_of(folder)["sft"]()
    (folder / "design.yaml").write_text(DESIGN.replace("pilot", "pilots"))
    with pytest.raises(ConfigError, match=r"design.yaml: the fields are pilot, pairs"):
        tables_of(folder)


@pytest.mark.parametrize(("page", "folder"), [("evidence.md", "evidence"), ("evidence_hard.md", "evidence/hard")])
def test_a_page_of_evidence_is_what_its_folder_makes(page, folder):
    text = (DOCS / page).read_text()
    assert tables.fill(text, tables_of(DOCS / folder)) == text
