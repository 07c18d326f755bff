"""`--scale tiny`: a recipe of each paper, on a model of each family, from its data to the report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3700)]
ROOT = Path(__file__).resolve().parents[2]
RUNS = {
    "qwen3": ("lp_sft/t2_magicoder", "objective=lp_sft", "model=qwen3_4b_base"),
    "llama": ("sed_sft/t1_sft_rl", "objective=sed_sft", "objective.mask=true", "model=llama3_2_3b_instruct"),
    "qwen2": ("prift/t5_dapo", "objective=prift_mass", "model=qwen2_5_math_1_5b"),
    "deepseek": ("prift/t10_math", "objective=prift_prob", "model=deepseek_math_7b"),
    "llama_medical": ("target_sft/t2_medical", "objective=target_sft", "model=llama3_1_8b"),
    "gemma3": ("talr/f2_medcalc", "objective=talr", "model=gemma3_4b_it", "sft.lr=1e-6"),
}


@pytest.mark.parametrize("family", RUNS)
def test_a_recipe_runs_at_scale_tiny(family, tmp_path):
    recipe, *overrides = RUNS[family]
    root = tmp_path / "runs"
    command = [sys.executable, "-m", "launch", "run", recipe, *overrides, f"run.root={root}", "--scale", "tiny"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (report,) = root.glob(f"{recipe}/*/report.md")
    text = report.read_text()
    assert "Against the paper" in text and "Open in the paper" in text
    if not recipe.startswith("talr"):
        assert "gap" in text
