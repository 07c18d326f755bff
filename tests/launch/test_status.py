from __future__ import annotations

import json

import pytest
import toy

from common.files import write_json
from launch.status import collect, show_status
from launch.store import Store
from launch.store.records import host


@pytest.fixture
def plan(tmp_path):
    with toy.every_state(tmp_path) as plan:
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
    write_json(store.lease(stale), {"run": "far", "stage": stale.fingerprint})
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
            toy.published(Store(tmp_path), stage)

    monkeypatch.setattr("launch.status.time.sleep", sleep)
    assert show_status(toy.plan(tmp_path, stage), watch=True, as_json=False) == 0
    assert slept == [1.0, 1.0]
    assert "1 done" in capsys.readouterr().out


@pytest.mark.parametrize(
    "message",
    [
        "config: /data/[red]/x.jsonl: none",
        "fault: [/x/y] is [no markup]",
        "closed [/] and [/bold] twice",
        "[link=a",
    ],
)
def test_any_message_survives(plan, capsys, message):
    store = Store(plan.root)
    failed = next(s for s in plan.stages.values() if s.label == "failed")
    store.finish(failed, 2, {"outcome": "fault", "message": message, "seconds": 1.0})
    running = next(s for s in plan.stages.values() if s.label == "running")
    values = {"attempt": 1, "counter": 1, "done": 1, "total": 2, "seconds": 1.0, "metrics": {"[/a]": 1.0}}
    write_json(store.logs(running) / "progress.json", values)
    assert show_status(plan, watch=False, as_json=False) == 0
    text = "".join(capsys.readouterr().out.split())
    assert "[/a]=1" in text and all(word in text for word in message.split()[:1])


def test_files_that_are_not_whole_survive(plan, capsys):
    store = Store(plan.root)
    (store.drivers / "broken.json").write_text("[]")
    for stage in plan.stages.values():
        store.logs(stage).mkdir(parents=True, exist_ok=True)
        (store.logs(stage) / "progress.json").write_text("[3]")
        (store.logs(stage) / "attempt-9.result.json").write_text('{"outcome"')
    assert show_status(plan, watch=False, as_json=False) == 0
