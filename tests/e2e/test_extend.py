"""docs/extend.md on the micro-world of recipes/microworld_qwen3.yaml: one of everything of one's own, outside the
package, with a family whose template rewrites chats, from preparation over two RL steps to evaluation.

One run, whose store every test reads.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_world import SMALL

from common.chats import Renderer
from common.models import load_tokenizer
from launch.__main__ import main
from launch.store import Store

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "recipes" / "templates" / "qwen3.jinja"
HEADER = "<|im_start|>assistant\n<think>\n\n</think>\n\n"  # of the template with enable_thinking: false
# The page's objective, and the one whose distance from the base shows whether the cache lies on the right tokens.
BRANCHES = 'sweep=[{objective.name: "focal:Focal", rl.enabled: false}, {objective.name: lp_sft}]'
SMALLER = {
    "data.microworld.pretrain_examples": 600,
    "data.microworld.sft_val_examples": 8,
    "data.microworld.rl_val_prompts": 8,
    "model.pretrain.steps": 20,
    "model.pretrain.batch_size": 32,
    "sft.steps": 3,
    "sft.save_every": 3,
    "rl.save_every": 2,
    "eval.held_out_chats": 4,
    "eval.resamples": 200,
}
OVERRIDES = [
    *(override for override in SMALL if override.partition("=")[0] not in SMALLER),
    *(f"{field}={value}" for field, value in SMALLER.items()),
    f"model.chat_template={TEMPLATE}",
    BRANCHES,
]
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The files of the page in a folder of their own; its recipe on another micro-world as `qwen3.yaml`."""
    folder = tmp_path_factory.mktemp("extend")
    text = (ROOT / "docs" / "extend.md").read_text()
    for name, content in re.findall(r"```\w+\n# (\S+\.\w+)\n(.*?)```", text, re.DOTALL):
        (folder / name).write_text(content)
    recipe, base = (folder / "squares.yaml").read_text(), "  - microworld\n"
    assert recipe.count(base) == 1
    changed = recipe.replace(base, "  - microworld_qwen3\n  - override objective: sft\n")
    (folder / "qwen3.yaml").write_text(changed)
    return folder


def run(folder):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    command = [sys.executable, "-m", "launch", "run", "qwen3.yaml", *OVERRIDES]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def made(page):
    """(kind, label) -> directory of every artifact of the run."""
    run(page)
    return {(record.kind, record.label): directory for directory, record in Store(page / "runs").artifacts()}


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_of_everything_of_ones_own_leaves_its_mark(page, made):
    summary = json.loads((made["prepare", "sft"] / "summary.json").read_text())
    assert summary["counts"]["sft_train"] + summary["counts"]["sft_val"] >= 2 * 29
    assert json.loads((made["lengths", "demonstrations"] / "lengths.json").read_text())["rows"][0][2] > 0
    metrics = json.loads((made["measure", "focal-focal.large_squares"] / "metrics.json").read_text())
    assert metrics["name"] == "large_squares" and metrics["counts"]["problems"] == 3
    report = next((page / "runs" / "qwen3").glob("*/report.md")).read_text()
    for text in ("Lengths of demonstrations", "Lengths of answers", "4 sets of answers were measured", "focal"):
        assert text in report, text


def test_every_stage_ran_on_the_family(made):
    kinds = {kind for kind, _ in made}
    assert kinds >= {"prepare", "pretrain", "lengths", "cache", "sft", "rl", "generate", "measure", "analyse"}
    for kind in ("sft", "rl"):
        listing = json.loads((made[kind, "lp_sft"] / "checkpoints.json").read_text())
        checkpoint = made[kind, "lp_sft"] / "checkpoints" / f"step_{listing['final']}"
        assert json.loads((checkpoint / "config.json").read_text())["model_type"] == "qwen3"
        assert load_tokenizer(checkpoint).chat_template == TEMPLATE.read_text()
    assert max(row["step"] for row in rows_of(made["rl", "lp_sft"] / "curve.jsonl")) == 2


def test_what_is_asked_is_what_was_trained_on(made):
    """Training rows, RL's prompts and evaluation's begin with the same tokens, an empty pair of thinking tags."""
    checkpoint = made["sft", "lp_sft"] / "checkpoints" / "step_3"
    renderer = Renderer(load_tokenizer(checkpoint), template_arguments={"enable_thinking": False})
    for chat in pq.read_table(made["prepare", "sft"] / "sft_train.parquet").to_pylist():
        (row,) = renderer.rows(chat["messages"])
        text, prompt = renderer.prompt(chat["messages"][:-1])
        assert text.endswith(HEADER)
        assert row.ids[: len(prompt)] == prompt and row.supervised.index(1) == len(prompt)
        assert chat["row_tokens"] == [len(row.ids)] and chat["row_supervised"] == [sum(row.supervised)]
    answers = pq.read_table(made["generate", "lp_sft.rl.large_squares"] / "generations.parquet").to_pylist()
    problems = pq.read_table(made["prepare", "large_squares"] / "problems.parquet").to_pylist()
    shown = {renderer.prompt(problem["prompt"])[0] for problem in problems}
    assert {row["prompt"] for row in answers} == shown and len(shown) == 3


def test_lp_sft_begins_at_distance_zero_from_the_base(made):
    first = rows_of(made["sft", "lp_sft"] / "curve.jsonl")[0]
    assert abs(first["loss"] - first["cross_entropy"]) < 1e-5


def test_a_second_run_computes_nothing(page, made):
    before = {path: path.stat().st_mtime_ns for path in (page / "runs").glob("*/*/record.json")}
    assert "done" not in run(page).splitlines()[-2]
    assert len(before) >= len(made)
    assert {path: path.stat().st_mtime_ns for path in (page / "runs").glob("*/*/record.json")} == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages=[lengths.LENGTH]", "stage 'lengths.LENGTH': AttributeError"),
        ("lengths.long=0", "lengths.long=0: Input should be greater than 0"),
        ("analyses=[pass_at_j]", "unknown analysis 'pass_at_j'; did you mean pass_at_k?"),
        ("data.sft=[{source: squares.SQUARES, largest: 1}]", "data.sft.0.largest=1: Input should be greater than 1"),
        (
            "eval.benchmarks=[{name: large_squares.SMALL, max_tokens: 32}]",
            "benchmark 'large_squares.SMALL': AttributeError",
        ),
    ],
)
def test_what_leads_nowhere_is_refused_in_one_line(page, monkeypatch, capsys, override, message):
    monkeypatch.syspath_prepend(page)
    monkeypatch.chdir(page)
    assert main(["plan", "squares.yaml", override]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
