"""`python -m launch`: arguments, exit codes, and messages of one line."""

from __future__ import annotations

import json

import pytest
import toy
from toy import published, signed_on

from launch.__main__ import main
from launch.store import Store


def test_a_limit_of_device_hours_is_a_field_of_the_recipe(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("launch.execution.run.run", lambda plan: seen.append(plan.branches[0].recipe.run) or 0)
    root = f"run.root={tmp_path}"
    assert main(["run", "microworld", "--max-device-hours", "2.5", root]) == 0
    assert main(["run", "microworld", root]) == 0
    assert [limits.max_device_hours for limits in seen] == [2.5, None]
    assert main(["run", "microworld", root, "--max-device-hours=much"]) == 2
    assert "run.max_device_hours=much" in capsys.readouterr().err


def test_what_is_wrong_is_said_in_one_line_and_ends_with_2(capsys):
    for arguments, text in (
        (["plan", "microwrld"], "error: recipe microwrld: did you mean microworld? allowed: "),
        (["status", "microworld", "sft.lrr=1"], "error: recipe microworld: sft.lrr: unknown field; did you mean lr?"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith(text) and error.count("\n") == 1
    for arguments in (["plan", "microworld", "--jsn"], ["explain", "a", "b", "c"], ["walk", "microworld"]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2


def test_overrides_may_stand_on_both_sides_of_an_option(tmp_path, capsys):
    assert main(["plan", "microworld", "seed=1,2", "--json", "rl.enabled=false", f"run.root={tmp_path}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [branch["overrides"] for branch in found["branches"]] == [["seed=1"], ["seed=2"]]
    assert not [row for row in found["stages"] if row["stage"] == "rl"]


def test_every_row_of_a_plan_says_what_it_is_made_from_where_and_for_whom(tmp_path, capsys):
    assert main(["plan", "microworld", "objective=sft,lp_sft", "--json", f"run.root={tmp_path}"]) == 0
    rows = {row["address"]: row for row in json.loads(capsys.readouterr().out)["stages"]}
    (cache,) = [row for row in rows.values() if row["stage"] == "cache"]
    assert cache["branches"] == ["lp_sft"] and cache["state"] == "miss" and len(cache["fingerprint"]) == 64
    assert cache["placement"] == {"nodes": 1, "gpus_per_node": 1.0, "cpus": 1.0, "strategy": "PACK"}
    (tuned,) = [row for row in rows.values() if (row["stage"], row["label"]) == ("sft", "lp_sft")]
    assert tuned["inputs"]["base_cache"] == cache["address"]
    assert tuned["inputs"]["model"].endswith(" checkpoint:final")
    for row in rows.values():
        assert {source.split()[0] for source in row["inputs"].values()} <= rows.keys()
        assert row["estimate"]["seconds"] > 0 and row["estimate"]["bytes"] > 0


def test_explain_and_gc_work_on_a_store_by_its_root(tmp_path, capsys):
    store = Store(tmp_path)
    one, two, left = toy.steps("one", count=3), toy.steps("two", count=4), toy.steps("left")
    published(store, one)
    published(store, two)
    assert main(["explain", one.address, two.address, "--root", str(tmp_path)]) == 0
    assert "settings.toy.steps: 3 -> 4" in capsys.readouterr().out
    assert main(["explain", one.address, "sft/none", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    signed_on(store, "gone", started=1.0)
    store.acquire(left, "gone")
    store.begin(left)
    assert main(["gc", "--root", str(tmp_path)]) == 0
    assert str(store.scratch(left)) in capsys.readouterr().out and store.scratch(left).exists()
    assert main(["gc", "--root", str(tmp_path), "--delete"]) == 0
    assert not store.scratch(left).exists() and store.has(one) and store.has(two)
    assert main(["gc", "--root", "s3://bucket/runs"]) == 1
    assert "set run.replica=s3://bucket/runs" in capsys.readouterr().err
