"""`prepare` and `run --dry-run --data`: every row is read, without a device, before anything is trained."""

from __future__ import annotations

import json

import pytest

from launch.__main__ import main
from launch.graph.builder import make_plan
from launch.store import Store

RECIPE = """
defaults: [base, {model: microworld}, {objective: sft}, {platform: cpu}, _self_]
data: {max_length: 64, files: {sft_train: %s, benchmarks: {target: %s}}}
rl: {enabled: false}
eval: {max_length: 64, benchmarks: [{name: target, max_tokens: 32}]}
"""


@pytest.fixture
def rows(tmp_path):
    chats, problems = tmp_path / "chats.jsonl", tmp_path / "problems.jsonl"
    turns = lambda n: [{"role": "user", "content": f"{n}+1"}, {"role": "assistant", "content": f"{n + 1}"}]  # noqa: E731
    chats.write_text("".join(json.dumps({"messages": turns(n)}) + "\n" for n in range(30)))
    problems.write_text('{"prompt": "77+1", "answer": "78"}\n')
    recipe = tmp_path / "own.yaml"
    recipe.write_text(RECIPE % (chats, problems))
    return recipe, chats, problems


def test_prepare_keeps_what_it_made_for_the_run(rows, tmp_path, capsys):
    recipe, chats, _ = rows
    arguments = [str(recipe), f"run.root={tmp_path / 'runs'}"]
    assert main(["prepare", *arguments]) == 0
    said = capsys.readouterr().out
    assert "prepare target: 1 rows in problems" in said and "rows in sft_train" in said
    store = Store(tmp_path / "runs")
    plan = make_plan(*(arguments[0], arguments[1:]))
    made = {stage.label for stage in plan.stages.values() if stage.kind == "prepare" and store.has(stage)}
    assert made == {"sft", "target", "pretrain"}
    assert not list(store.drivers.glob("*")) and not list((store.root / "prepare").glob(".lease-*"))
    assert {row["outcome"] for row in store.costs()} == {"ok"}
    assert main(["prepare", *arguments]) == 0
    assert capsys.readouterr().out.count("there already") == 3
    with chats.open("a") as file:
        file.write('{"messages": [{"role": "user", "content": "77+1"}, {"role": "assistant", "content": "78"}]}\n')
    assert main(["prepare", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: prepare sft: ")
    assert "chats.jsonl line 31" in captured.err
    assert not list(store.drivers.glob("*")) and not list((store.root / "prepare").glob(".lease-*"))


def test_a_dry_run_reads_the_rows_and_keeps_nothing(rows, tmp_path, capsys):
    recipe, chats, _ = rows
    arguments = ["run", str(recipe), f"run.root={tmp_path / 'runs'}", "--dry-run", "--data"]
    assert main(arguments) == 0
    assert "3 of 3 parts of the data are fine" in capsys.readouterr().out
    assert not list((tmp_path / "runs").glob("prepare")) and not list((tmp_path / "runs").glob("*.jsonl"))
    chats.write_text(chats.read_text() + "not json\n")
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "chats.jsonl line 31: not JSON" in captured.err and captured.err.count("\n") == 1
    assert "2 of 3 parts of the data are fine" in captured.out


def test_every_part_is_read_whatever_is_wrong_with_another(rows, tmp_path, capsys):
    recipe, chats, problems = rows
    chats.write_text("not json\n")
    problems.write_text("not json\n")
    assert main(["run", str(recipe), f"run.root={tmp_path / 'runs'}", "--dry-run", "--data"]) == 2
    captured = capsys.readouterr()
    assert "error: prepare target: " in captured.err
    assert "prepare sft: not read, since what it reads is wrong" in captured.out
