"""A family whose template rewrites chats, through the whole pipeline: Qwen3's architecture and way of writing them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from common.models import load_tokenizer
from data_prep.chats import Renderer

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "recipes" / "templates" / "qwen3.jinja"
ARGUMENTS = {"enable_thinking": False}
SMALL = [
    "data.microworld.pretrain_examples=1200",
    "data.microworld.sft_examples=96",
    "data.microworld.rl_prompts=32",
    "data.microworld.target_problems=12",
    "data.microworld.skill_problems=4",
    "model.pretrain.hidden=64",
    "model.pretrain.layers=2",
    "model.pretrain.heads=2",
    "model.pretrain.steps=40",
    "sft.steps=6",
    "sft.batch_size=16",
    "rl.steps=2",
    "rl.prompts=4",
    "rl.samples=4",
    "rl.mini_batch=4",
    "rl.probe.prompts=2",
    "rl.probe.samples=2",
]
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3700)]


def only(root, pattern):
    (found,) = root.glob(pattern)
    return found


def test_qwen3_from_prepare_to_evaluation(tmp_path):
    root, log = tmp_path / "runs", tmp_path / "log"
    command = [sys.executable, "-m", "launch", "run", "microworld_qwen3", *SMALL, f"run.root={root}"]
    with log.open("ab") as stream:
        code = subprocess.call(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=stream, stderr=stream, timeout=3600
        )
    assert code == 0, log.read_text()[-4000:]
    kinds = {path.parent.parent.name for path in root.glob("*/*/record.json")}
    assert kinds >= {"prepare", "pretrain", "cache", "sft", "rl", "generate", "measure"}

    tuned = only(root, "sft/lp_sft-*/checkpoints/step_6")
    assert json.loads((tuned / "config.json").read_text())["model_type"] == "qwen3"
    renderer = Renderer(load_tokenizer(tuned, chat_template=str(TEMPLATE)), template_arguments=ARGUMENTS)
    # The prompt that evaluation showed is the prompt of a training row of the same question.
    answers = pq.read_table(next(root.glob("generate/*/generations.parquet"))).to_pylist()
    assert all(row["prompt"].endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n") for row in answers)
    chats = pq.read_table(only(root, "prepare/sft-*/sft_train.parquet")).to_pylist()
    for chat in chats[:8]:
        (row,) = renderer.rows(chat["messages"])
        _, prompt = renderer.prompt(chat["messages"][:-1])
        assert row.ids[: len(prompt)] == prompt and row.supervised.index(1) == len(prompt)
        assert chat["row_tokens"] == [len(row.ids)] and chat["row_supervised"] == [sum(row.supervised)]
    # The student begins as the base, so that LP-SFT's distance from it is zero at the first step.
    curve = [json.loads(line) for line in only(root, "sft/lp_sft-*/curve.jsonl").read_text().splitlines()]
    assert abs(curve[0]["loss"] - curve[0]["cross_entropy"]) < 1e-5
