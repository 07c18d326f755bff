"""Data-level methods on the micro-world: sampled by vLLM, judged, chosen, and trained on by verl."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_world import SMALL

from data_prep.rewriting.questions import stated
from evaluation.grading import grade_answer
from launch.store import Store

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]
ROOT = Path(__file__).resolve().parents[2]
METHODS = ("rft", "star", "grape", "self_distillation")
OWN = [
    "rl.enabled=false", "eval.enabled=false", "model.pretrain.steps=300", "model.pretrain.hidden=96",
    "data.microworld.pretrain_examples=4800", "data.max_length=200", "sft.steps=2", "rewrite.max_tokens=48",
    "rewrite.max_length=256", "rewrite.eager=true", "rewrite.unanswered=demonstration",
]  # fmt: skip
NAMED = {text.partition("=")[0] for text in OWN}
OVERRIDES = [*(text for text in SMALL if text.partition("=")[0] not in NAMED), *OWN]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The store of one run with a branch for each method."""
    root = tmp_path_factory.mktemp("rewrite") / "runs"
    command = [sys.executable, "-m", "launch", "run", "microworld", *OVERRIDES, f"run.root={root}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, f"rewrite={','.join(METHODS)}"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root


def artifacts(root):
    return {(record.kind, record.label): directory for directory, record in Store(root).artifacts()}


def chats_of(directory):
    return pq.read_table(directory / "sft_train.parquet").to_pylist()


def answer_of(chat):
    return chat["messages"][-1]["content"]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_trained_on_is_what_was_counted(root, method):
    found = artifacts(root)
    before = {chat["id"]: chat for chat in chats_of(found["prepare", "sft"])}
    directory = found["rewrite", method]
    summary = json.loads((directory / "summary.json").read_text())
    after, log = chats_of(directory), pq.read_table(directory / "responses.parquet").to_pylist()
    assert len(after) == summary["counts"]["sft_train"] == summary["chats"]["after"]
    assert len(log) == sum(summary["responses"].values()) > len(before) / 2
    assert sum(row["finish_reason"] == "stop" for row in log) > 0
    new = [chat for chat in after if before.get(chat["id"]) != chat]
    assert len(new) == summary["chats"]["sampled"]
    for chat in new:
        demonstration = before[chat["id"].partition("~")[0]]
        assert chat["messages"][:-1] == demonstration["messages"][:-1]
        answer = stated(answer_of(demonstration))
        if method != "grape" and answer is not None:
            assert grade_answer(answer_of(chat), answer, "math").correct
    assert (directory / "sft_val.parquet").read_bytes() == (found["prepare", "sft"] / "sft_val.parquet").read_bytes()


def test_grape_chooses_the_likeliest(root):
    log = pq.read_table(artifacts(root)["rewrite", "grape"] / "responses.parquet").to_pylist()
    chosen = [row for row in log if row["chosen"]]
    assert chosen and all(row["log_p"] < 0 for row in log if row["verdict"] == "ungraded")
    for best in chosen:
        rivals = [row for row in log if row["id"] == best["id"] and row["log_p"] is not None]
        # A sampled response's tokens are those that are scored: its own and the one that ends the turn.
        assert best["log_p"] / best["tokens"] >= max(row["log_p"] / row["tokens"] for row in rivals) - 1e-9


def test_training_reads_them(root):
    found = [record for _, record in Store(root).artifacts()]
    assert sum(record.kind == "sft" for record in found) == len(METHODS)
    assert sum(record.kind == "pretrain" for record in found) == 1
