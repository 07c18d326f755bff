"""`python -m launch`: arguments, exit codes, and messages of one line."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import toy
from toy import published, signed_on

from launch.__main__ import main
from launch.store import Store

ROOT = Path(__file__).resolve().parents[2]


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


def test_nothing_to_delete_is_said_and_so_is_a_store_that_is_not_there(tmp_path, capsys):
    published(Store(tmp_path), toy.steps("one"))
    assert main(["gc", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("nothing to delete: ")
    assert main(["gc", "--root", str(tmp_path / "absent")]) == 1
    assert capsys.readouterr().err == f"error: --root {tmp_path / 'absent'}: there is no store; name its directory\n"


def test_explain_takes_the_paths_that_logs_print(tmp_path, capsys, monkeypatch):
    store = Store(tmp_path / "runs")
    one, two = toy.steps("one", count=3), toy.steps("two", count=4)
    published(store, one)
    published(store, two)
    monkeypatch.chdir(tmp_path)
    relative = f"runs/{one.address}"
    for first in (one.address, relative, f"{relative}.logs/attempt-1.log", f"{relative}/deep/a.txt", store.logs(one)):
        for second in (two.address, store.directory(two) / "checkpoints" / "step_16"):
            assert main(["explain", str(first), str(second)]) == 0
            assert "settings.toy.steps: 3 -> 4" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["plan", "run", "status", "prepare", "report"])
def test_a_root_that_is_a_file_is_one_line(tmp_path, capsys, command):
    (tmp_path / "file").write_text("")
    assert main([command, "microworld", f"run.root={tmp_path / 'file'}"]) == 1
    error = capsys.readouterr().err
    assert error == f"error: run.root={tmp_path / 'file'}: a file, not a directory; give a directory\n"


@pytest.mark.parametrize("command", ["run", "prepare"])
def test_a_root_that_cannot_be_made_is_one_line(tmp_path, capsys, command):
    (tmp_path / "file").write_text("")
    assert main([command, "microworld", f"run.root={tmp_path / 'file' / 'runs'}"]) == 1
    error = capsys.readouterr().err
    assert "cannot be made (Not a directory); give a directory that you can write to" in error
    assert error.count("\n") == 1


def test_what_the_file_system_refuses_is_one_line(tmp_path, capsys, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EROFS, "Read-only file system", str(tmp_path / "x"))

    monkeypatch.setattr("launch.report.write.write_text", refuse)
    assert main(["report", "microworld", f"run.root={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'x'}: Read-only file system") and error.count("\n") == 1


def test_a_read_only_store_can_be_looked_at(tmp_path, capsys):
    root, elsewhere = tmp_path / "runs", tmp_path / "pages"
    published(Store(root), toy.steps("one"))
    before = {path: path.lstat().st_mtime_ns for path in root.rglob("*")}
    given = ["microworld", f"run.root={root}"]
    for arguments in (["plan", *given], ["status", *given], ["report", *given, "--output", str(elsewhere)]):
        assert main(arguments) == 0
    assert {path: path.lstat().st_mtime_ns for path in root.rglob("*")} == before
    assert (elsewhere / "report.html").is_file() and (elsewhere / "report.md").is_file()


def test_a_sweep_at_a_comma_of_a_text_is_shown_before_it_costs_anything(tmp_path, capsys):
    assert main(["plan", "microworld", "data.system_prompt=You are brief, and kind.", f"run.root={tmp_path}"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "branches by data.system_prompt: You are brief | and kind." in shown
    assert "one text with a comma is quoted twice: data.system_prompt=\"'...'\"" in shown


def test_paths_in_brackets_are_shown_as_they_are(tmp_path, capsys):
    root = tmp_path / "[bold]runs"
    assert main(["plan", "microworld", f"run.root={root}", "eval.enabled=false", "rl.enabled=false"]) == 0
    assert "[bold]runs" in "".join(capsys.readouterr().out.split())


def test_a_warning_is_one_line(tmp_path, capsys):
    recipe = tmp_path / "own.yaml"
    groups = "{model: microworld}, {data: microworld}, {objective: sft}, {sft: microworld}, {platform: cpu}"
    recipe.write_text(f"defaults: [_self_, base, {groups}]\nsft: {{batch_size: 7}}\n")
    assert main(["plan", str(recipe), f"run.root={tmp_path}"]) == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: recipe own: sft.batch_size: ") and error.count("\n") == 1


def test_a_pipe_that_closes_early_is_no_traceback(tmp_path):
    command = f"{sys.executable} -m launch plan microworld --json run.root={tmp_path} | head -c 10"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout and "Traceback" not in done.stderr and "Exception" not in done.stderr


STARTED = "import runpy; print('x', flush=True); runpy.run_module('launch', run_name='__main__', alter_sys=True)"


@pytest.mark.parametrize("moment", [0.1, 0.5, 2.0])
def test_an_interrupt_at_any_moment_is_no_traceback(tmp_path, moment):
    process = subprocess.Popen(
        [sys.executable, "-c", STARTED, "plan", "microworld", "seed=range(0,40)", f"run.root={tmp_path}"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "x\n"
    time.sleep(moment)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=200)
    assert "Traceback" not in error
    assert process.returncode in (0, 130)
    assert process.returncode == 0 or error == "interrupted; the same command continues\n"


def test_the_console_command_is_the_same(tmp_path, monkeypatch, capsys):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["sft-then-rl"].partition(":")
    command = getattr(importlib.import_module(module), function)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/sft-then-rl", "plan", "microworld", "--json", f"run.root={tmp_path}"])
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    with pytest.raises(SystemExit) as left:
        command()
    assert left.value.code == 0 and os.getcwd() in sys.path
    assert json.loads(capsys.readouterr().out)["recipe"] == "microworld"
    monkeypatch.setattr(sys, "argv", ["sft-then-rl", "--help"])
    with pytest.raises(SystemExit):
        command()
    assert "usage: sft-then-rl" in capsys.readouterr().out
