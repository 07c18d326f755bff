from __future__ import annotations

import json

import pytest
import toy
from rich.console import Console
from test_store import published

from launch import run
from launch.status import Display, bytes_text, collect, print_budget, seconds_text, show_status
from launch.store import Heartbeat, Store, host, write_json


@pytest.fixture
def plan(tmp_path):
    """One stage in each state."""
    done, running, stale = toy.steps("done"), toy.steps("running"), toy.steps("stale")
    failed = toy.steps("failed")
    blocked, waiting = (
        toy.steps("blocked", "rl", inputs={"model": failed}),
        toy.steps("waiting", "rl", inputs={"model": running}),
    )
    plan = toy.plan(tmp_path, done, running, stale, failed, blocked, waiting)
    store = Store(tmp_path)
    with Heartbeat(store, "toy") as beat:
        store.acquire(done, beat.run)
        (store.temporary(done, store.begin(done)) / "a.txt").write_text("a")
        store.publish(done, 1, beat.run, started=0.0, seconds=75.0, peak_memory_bytes=1)
        store.release(done, beat.run)
        store.acquire(running, beat.run)
        store.begin(running)
        progress = {"attempt": 1, "counter": 9, "done": 25, "total": 100, "seconds": 10.0, "metrics": {"loss": 1.5}}
        write_json(store.logs(running) / "progress.json", progress)
        store.acquire(stale, beat.run)
        write_json(store._lease(stale), {"run": "gone", "stage": stale.fingerprint})
        store.begin(failed)
        store.finish(failed, 1, {"outcome": "config", "message": "row 7", "seconds": 1.0})
        yield plan


def test_every_state_is_told_apart(plan):
    rows = {row["label"]: row for row in collect(plan)}
    assert {label: row["state"] for label, row in rows.items()} == {
        "done": "done",
        "running": "running",
        "stale": "stale",
        "failed": "failed",
        "blocked": "blocked",
        "waiting": "waiting",
    }
    assert rows["running"]["eta"] == pytest.approx(30.0) and rows["running"]["metrics"] == {"loss": 1.5}
    assert rows["failed"]["message"] == "config: row 7"
    assert rows["done"]["seconds"] == 75.0


def test_a_driver_elsewhere_counts_as_running_while_its_heartbeat_moves(plan, monkeypatch):
    store = Store(plan.root)
    (driver,) = store.list_drivers()
    far = {**driver.__dict__, "run": "far", "host": "elsewhere/1", "counter": 1}
    stale = next(s for s in plan.stages.values() if s.label == "stale")
    write_json(store.drivers / "far.json", far)
    write_json(store._lease(stale), {"run": "far", "stage": stale.fingerprint})
    monkeypatch.setattr("launch.status.time.sleep", lambda _: None)
    assert {r["label"]: r["state"] for r in collect(plan)}["stale"] == "stale"
    monkeypatch.setattr(
        "launch.status.time.sleep", lambda _: write_json(store.drivers / "far.json", {**far, "counter": 2})
    )
    assert {r["label"]: r["state"] for r in collect(plan)}["stale"] == "running"
    assert host() != "elsewhere/1"


def test_status_prints_a_screen_or_json(plan, capsys):
    assert show_status(plan, watch=False, as_json=True) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 6 and all(set(rows[0]) == set(row) for row in rows)
    assert show_status(plan, watch=False, as_json=False) == 0
    text = capsys.readouterr().out
    assert "25/100" in text and "loss=1.5" in text and "1 min 15 s" in text and "1 blocked" in text


def test_watching_ends_when_everything_is_done(tmp_path, monkeypatch, capsys):
    stage = toy.steps()
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 2:
            published(Store(tmp_path), stage)

    monkeypatch.setattr("launch.status.time.sleep", sleep)
    assert show_status(toy.plan(tmp_path, stage), watch=True, as_json=False) == 0
    assert slept == [1.0, 1.0]
    assert "1 done" in capsys.readouterr().out


def test_display_says_what_changes_in_plain_lines(plan, capsys):
    store = Store(plan.root)
    progress = {mark: run.Progress(stage) for mark, stage in plan.stages.items()}
    running = next(p for p in progress.values() if p.stage.label == "running")
    with Display(plan, store) as display:
        display.update(progress)
        assert capsys.readouterr().out == ""
        running.state, running.attempt = "running", 1
        display.update(progress)
        display.update(progress)
        assert capsys.readouterr().out.count("sft running started, log ") == 1
        display._said[running.stage.fingerprint] -= 60
        display._updated = 0.0
        display.update(progress)
        assert "sft running 25/100 loss=1.5" in capsys.readouterr().out
        running.state, running.seconds, running.peak_memory_bytes = "done", 12.0, 2_500_000_000
        display.update(progress)
        assert "sft running done 12.0 s, peak 2.50 GB" in capsys.readouterr().out


def test_display_draws_bars_on_a_terminal(plan, monkeypatch):
    monkeypatch.setattr("launch.status.Console", lambda: Console(force_terminal=True, width=100, record=True))
    progress = {mark: run.Progress(stage) for mark, stage in plan.stages.items()}
    running = next(p for p in progress.values() if p.stage.label == "running")
    with Display(plan, Store(plan.root)) as display:
        running.state = "running"
        display.update(progress)
        display._updated = 0.0
        display.update(progress)
    assert "25/100" in display._console.export_text()


def test_budget_lists_what_ran(plan, capsys):
    progress = [run.Progress(stage, "cached") for stage in plan.stages.values()]
    progress[0].state, progress[0].seconds, progress[0].peak_memory_bytes = "done", 65.0, 3_000_000_000
    print_budget(progress, 70.0)
    text = capsys.readouterr().out
    assert "sft done" in text and "1 min 05 s" in text and "3.00 GB" in text and "elapsed: 1 min 10 s" in text
    assert "sft running" not in text


def test_units():
    assert [seconds_text(s) for s in (0.04, 59.9, 61, 7380)] == ["0.0 s", "59.9 s", "1 min 01 s", "2 h 03 min"]
    assert [bytes_text(b) for b in (5e6, 1.5e9)] == ["5 MB", "1.50 GB"]
