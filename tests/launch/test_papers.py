"""The recipes of the five papers: their settings as the papers print them, and the papers' numbers beside them."""

from __future__ import annotations

import csv
import hashlib
import json
from functools import cache
from pathlib import Path

import pytest
import yaml

from launch.published.cells import matching, paper_of, printed, row_of, tables_of
from launch.published.names import off_grid
from launch.recipe.compose import RECIPES, RecipeError, branches
from launch.recipe.library import PAPERS, locate, paper_recipes

TABLE = list(csv.DictReader((Path(__file__).parent / "papers.csv").open(encoding="utf-8")))
COUNTS = {"lp_sft": 946, "sed_sft": 193, "prift": 798, "target_sft": 472, "talr": 27}
# SHA-256 of the sorted rows of an independent transcription of each paper's tables, as JSON.
TRANSCRIPTIONS = {
    "lp_sft": "520ee5a62ade420ce8760a6621ead436dc01c97d24a5f4d3c8449c23b46239d7",
    "sed_sft": "5c5f9246a306fe50506f8e26990a1f568cf924f0de7cd89d8b7c0db0ff8be9ea",
    "prift": "f7808863391774e23e30e15ebf14ae702b1a13016c85792e414bd25e24c9df29",
    "target_sft": "82eaad64f9ca3cb6017dec5bacd92eeabf5798eeac307f147603e108ea58fbd8",
    "talr": "36e5cd1aa8312d6ea3f92af8f610fcfcafade381bc0fb2d4d73151f407231cb9",
}
# SFT runs of a table by the papers' own counts; those that another table has, too, are counted in both.
RUNS = {
    "lp_sft/t1_mixed": 6, "lp_sft/t2_ultrafeedback": 18, "lp_sft/t2_magicoder": 18, "lp_sft/t2_numinamath": 18,
    "lp_sft/t14_bases": 3, "lp_sft/t17_ablation": 8, "lp_sft/t18_schedule": 6, "lp_sft/t19_cost": 6,
    "sed_sft/t1_sft_rl": 10, "sed_sft/t2_self_bleu": 4, "sed_sft/t3_thresholds": 7, "prift/t2_sources": 11,
    "prift/t3_math": 16, "prift/t4_code": 8, "prift/t5_dapo": 8, "prift/t6_sources": 6, "prift/t7_kd": 5,
    "prift/t8_cross_model": 4, "prift/t9_medical": 8, "prift/t10_math": 20, "prift/t11_code": 8,
    "target_sft/t1_math": 24, "target_sft/t2_medical": 16, "target_sft/t6_ablation": 11,
    "talr/f2_medcalc": 36, "talr/f5_kl": 6, "talr/d3_tau": 1,
}  # fmt: skip
GRIDS = (
    "lp_sft/f4_mu", "prift/f6_ema", "prift/f6_threshold", "target_sft/t5_data_level", "talr/f1_rates", "talr/f4_rates",
    "talr/f6_choice",
)  # fmt: skip


@cache
def all_of(recipe: str):
    return list(branches(recipe, []))


def selected(row):
    """The branches that the row's overrides name: as a command would select them."""
    wanted = set(row["overrides"].split())
    return [one for one in all_of(row["recipe"]) if wanted <= {str(axis) for axis in one.axes}]


def value_at(recipe, path):
    found = recipe
    for part in path.split("."):
        found = found[int(part)] if isinstance(found, list | tuple) else (
            found[part] if isinstance(found, dict) else getattr(found, part)
        )  # fmt: skip
    return found


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row['recipe']} {row['overrides']} {row['field']}")
def test_a_setting_is_the_papers(row):
    found = selected(row)
    assert found
    for branch in found:
        assert value_at(branch.recipe, row["field"]) == yaml.safe_load(_number(row["value"])), branch.axes


def _number(text):
    return text if "e-" not in text else f"{float(text):f}"


def test_every_paper_is_there_with_its_runs():
    assert {name: len(all_of(name)) for name in RUNS} == RUNS
    assert set(paper_recipes()) == {*RUNS, *GRIDS}


def test_an_override_of_the_sweep_selects_its_rows():
    one = list(branches("lp_sft/t2_magicoder", ["objective=lp_sft", "model=qwen3_4b_base"]))
    assert [(b.recipe.model.path, b.recipe.objective["name"]) for b in one] == [("Qwen/Qwen3-4B-Base", "lp_sft")]
    several = list(branches("lp_sft/t2_magicoder", ["objective=gem,dft", "seed=1,2"]))
    assert len(several) == 3 * 2 * 2
    with pytest.raises(RecipeError, match=r"no row of its sweep has objective=talr; allowed: objective=sft \| dft \|"):
        list(branches("lp_sft/t2_magicoder", ["objective=talr"]))
    with pytest.raises(RecipeError, match=r"data=openr1_15k eval=.*allowed: "):
        list(branches("target_sft/t1_math", ["model=qwen3_1_7b_base", "data=openr1_15k", "eval=target_sft_openr1"]))


def test_a_recipe_goes_by_its_table_where_it_is_the_only_one():
    assert locate("lp_sft/t17").name == "lp_sft/t17_ablation"
    with pytest.raises(RecipeError, match=r"there are several; allowed: lp_sft/t2_magicoder, lp_sft/t2_numinamath"):
        locate("lp_sft/t2")


def test_no_setting_of_a_paper_is_without_its_source():
    for paper in PAPERS:
        lines = (RECIPES / paper / "settings.yaml").read_text().splitlines()
        section = ""
        for line in lines:
            section = line.split(":")[0] if line and not line.startswith((" ", "#")) else section
            key = line.strip().split(":")[0]
            runtime = key in ("processes", "tokens_per_micro_batch", "gradient_checkpointing")
            if section == "sft" and line.startswith("  ") and not runtime:
                assert "#" in line, f"{paper}: {line}"


@pytest.mark.parametrize("paper", PAPERS)
def test_published_cells_are_those_handed_over(paper):
    cells = printed(paper)
    assert len(cells) == COUNTS[paper]
    columns = ("table", "model", "dataset", "method", "benchmark", "metric", "value", "note")
    ours = sorted(tuple(getattr(cell, name) for name in columns) for cell in cells)
    assert hashlib.sha256(json.dumps(ours).encode()).hexdigest() == TRANSCRIPTIONS[paper]


@pytest.mark.parametrize("name", sorted(RUNS))
def test_every_branch_finds_its_printed_row(name):
    paper, found, used = paper_of(name), set(), set()
    for branch in all_of(name):
        section, texts = branch.recipe.published, [str(axis) for axis in branch.axes]
        used |= set(section.names) & set(texts)
        phases = ["SFT", "RL"] if branch.recipe.rl.enabled else ["SFT"] if branch.recipe.sft.enabled else ["base"]
        rows = [matching(paper, section, texts, phase) for phase in phases]
        printed_somewhere = any(cell.table in section.tables for cell in printed(paper))
        assert any(rows) or not printed_somewhere, (texts, row_of(section, texts, phases[-1]))
        found |= {cell for row in rows for cell in row}
        found |= set(matching(paper, section, texts, "base"))
    assert used == set(all_of(name)[0].recipe.published.names)
    tables = all_of(name)[0].recipe.published.tables
    missed = {(c.model, c.dataset, c.method) for c in printed(paper) if c.table in tables and c not in found}
    allowed = {"SFT [Online model]", "Original [Online model]", "Base"}  # printed twice; evaluated without training
    assert not {one for one in missed if one[2] not in allowed}


def test_cells_off_their_own_grid():
    marked = {paper: sum(cell.off_grid for cell in printed(paper)) for paper in PAPERS}
    assert marked["talr"] == 0 and marked["lp_sft"] > 0
    assert not off_grid("lp_sft", (("aime23_26", "pass@32"),), "20.83")  # 25 of 120
    assert off_grid("lp_sft", (("humaneval_plus", "pass@1"),), "39.41")
    assert off_grid("sed_sft", (("math500", "pass@1"),), "67.7")


def test_what_a_command_prints(capsys):
    from launch.__main__ import main

    assert main(["published", "lp_sft/t2"]) == 0
    out = capsys.readouterr().out
    assert "lp_sft T2, Qwen3-4B, UltraFeedback" in out and "42.79" in out
    assert tables_of("lp_sft/t2_magicoder") == ("lp_sft", ["T15"])
    assert main(["published", "lp_sft/t99"]) == 2
    assert "no table of lp_sft; allowed: T1, T2" in capsys.readouterr().err
