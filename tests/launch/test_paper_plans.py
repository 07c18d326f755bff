"""Every recipe of the papers plans without a network, and the page that lists what it takes is up to date."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launch import recipes_page
from launch.graph.builder import make_plan
from launch.graph.dry_run import check_stage_configs
from launch.recipe.compose import RecipeError
from launch.recipe.library import paper_recipes
from launch.store import Store

ROOT = Path(__file__).resolve().parents[2]
# One row of each paper, with every kind of stage that it has.
ROWS = {
    "lp_sft/t2_magicoder": ["objective=asft", "model=qwen3_14b_base"],
    "sed_sft/t1_sft_rl": ["objective=sed_sft", "objective.mask=true", "model=llama3_2_3b_instruct"],
    "prift/t5_dapo": ["objective=prift_mass", "model=qwen3_8b_base"],
    "target_sft/t1_math": ["objective=distill", "model=qwen2_5_math_7b", "data=openr1_15k"],
    "talr/f2_medcalc": ["sft=lora", "sft.lr=5e-6", "model=gemma3_4b_it"],
}


@pytest.fixture(scope="module", autouse=True)
def without_a_network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return str(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def plans(root):
    return recipes_page.plans(root)


def test_every_recipe_plans(plans):
    assert set(plans) == set(paper_recipes())
    for name, plan in plans.items():
        kinds = {stage.kind for stage in plan.stages.values()}
        assert "sft" in kinds or name == "lp_sft/t14_bases"
        assert ("rl" in kinds) == (name in ("sed_sft/t1_sft_rl", "sed_sft/t3_thresholds", "prift/t5_dapo"))


def test_the_page_is_what_the_plans_say(plans, root):
    command = "run: python -m launch.recipes_page > docs/recipes.md"
    assert recipes_page.page(plans, Store(root)) == (ROOT / "docs" / "recipes.md").read_text(), command


def test_runs_that_tables_share_are_one(plans):
    """Table 18's adaptive rows and the last row of table 17 are table 2's; table 19 times table 2's runs."""
    table = {stage.fingerprint for stage in plans["lp_sft/t2_ultrafeedback"].stages.values() if stage.kind == "sft"}
    shared = {
        name: sum(stage.fingerprint in table for stage in plans[name].stages.values())
        for name in ("lp_sft/t17_ablation", "lp_sft/t18_schedule", "lp_sft/t19_cost")
    }
    assert shared == {"lp_sft/t17_ablation": 1, "lp_sft/t18_schedule": 3, "lp_sft/t19_cost": 6}


@pytest.mark.parametrize("name", ROWS)
def test_verl_accepts_a_row_of_each_paper(name, root):
    plan = make_plan(name, [*ROWS[name], f"run.root={root}"])
    checked = check_stage_configs(plan)
    assert sum(count for (kind, _), count in checked.items() if kind in ("sft", "rl")) >= 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_verl_accepts_every_recipe(plans):
    for plan in plans.values():
        check_stage_configs(plan)


def test_a_data_set_without_a_commit_is_refused_where_names_are_pinned(root):
    with pytest.raises(RecipeError, match=r"numina_math_cot: run\.pinned=true .* set data\.numina_math_cot\.path"):
        make_plan("prift/t7_kd", ["objective.weight=0.0", f"run.root={root}", "run.pinned=true"])


def test_planning_a_paper_imports_no_heavy_package(root):
    code = (
        "import sys; from launch.__main__ import main\n"
        f"assert main(['plan', 'talr/d3_tau', 'run.root={root}', '--json']) == 0\n"
        "assert not {'torch', 'verl', 'vllm', 'ray'} & set(sys.modules), sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
