"""What trackers get to see of stages in work, of finished ones, and over several sessions."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import toy

from launch.execution import tracking
from launch.execution.tracking import Tracking
from launch.store import Store
from launch.trackers.contract import Row, Tracker


class Recording(Tracker):
    """Keeps what it is given; refuses the first `refusals` times."""

    name, requirement, package = "recording", "numpy", "numpy"

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, int, dict[str, float]]] = []
        self.opened: list[str] = []
        self.closed: list[tuple[str, str]] = []
        self.refusals = 0

    def open(self, run: Any, directory: Path) -> Any:
        self.opened.append(run.id)
        return _Open(self, run)

    def points(self, name: str) -> list[tuple[int, float]]:
        return [(step, values[name]) for _, _, step, values in self.rows if name in values]


class _Open:
    def __init__(self, tracker: Recording, run: Any) -> None:
        self.tracker, self.run = tracker, run

    def log(self, rows: list[Row]) -> None:
        if self.tracker.refusals:
            self.tracker.refusals -= 1
            raise ConnectionError("no route to host")
        self.tracker.rows += [(self.run.id, row.series, row.step, dict(row.values)) for row in rows]

    def close(self, state: str) -> None:
        self.tracker.closed.append((self.run.id, state))


@pytest.fixture
def recording(monkeypatch):
    tracker = Recording()
    monkeypatch.setattr(tracking.trackers, "load", lambda name: tracker)
    monkeypatch.setattr(tracking, "INTERVAL", 0.02)
    monkeypatch.setattr(tracking, "SHARE", 1)
    monkeypatch.setattr(tracking, "PAUSE", (0.02, 0.1))
    return tracker


def plan_of(root: Path):
    sft = toy.steps("s")
    rl = toy.steps("r", "rl", inputs={"model": sft})
    plan = toy.plan(root, sft, rl)
    recipe = plan.branches[0].recipe
    run = recipe.run.model_copy(update={"trackers": ["recording"]})
    plan.branches[0] = type(plan.branches[0])(
        "toy", (), recipe.model_copy(update={"run": run}), plan.branches[0].stages
    )
    return plan, sft, rl


def in_work(store: Store, stage, steps, name="loss", factor=1.0) -> Path:
    """A curve in a stage's scratch directory, as trainers replace it."""
    path = store.scratch(stage) / "curve.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text("".join(json.dumps({"step": step, name: step * factor}) + "\n" for step in steps))
    temporary.replace(path)
    return path


def publish(store: Store, stage, steps, name="loss", factor=1.0) -> None:
    assert store.acquire(stage, "run")
    attempt = store.begin(stage)
    rows = (json.dumps({"step": step, name: step * factor}) + "\n" for step in steps)
    (store.temporary(stage, attempt) / "curve.jsonl").write_text("".join(rows))
    store.publish(stage, attempt, "run", started=1.0, seconds=2.0, peak_memory_bytes=3)
    store.release(stage, "run")


def wait(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rows_are_shown_while_a_stage_runs_and_the_run_ends_with_its_branch(tmp_path, recording):
    plan, sft, rl = plan_of(tmp_path)
    store = Store(plan.root)
    with Tracking(plan, store) as shown:
        path = in_work(store, sft, [1, 2])
        wait(lambda: recording.points("loss") == [(1, 1.0), (2, 2.0)])
        with path.open("a") as file:
            file.write('{"step": 3, "loss": 3.0}\n{"step": 4, "lo')  # half written
            file.flush()
            wait(lambda: len(recording.points("loss")) == 3)
            file.write('ss": 4.0}\n')
        wait(lambda: len(recording.points("loss")) == 4)
        publish(store, sft, [1, 2, 3, 4, 5])
        publish(store, rl, [0, 1], "reward", 0.5)
        shown.code = 0
    assert recording.points("loss") == [(step, float(step)) for step in range(1, 6)]
    assert recording.points("reward") == [(0, 0.0), (1, 0.5)]
    assert {series for _, series, _, _ in recording.rows} == {"sft/s", "rl/r"}
    assert recording.opened == [rl.fingerprint[:16]] and recording.closed == [(rl.fingerprint[:16], "finished")]


def test_the_next_session_goes_on_and_steps_that_a_retry_repeats_are_shown_once(tmp_path, recording):
    plan, sft, rl = plan_of(tmp_path)
    store = Store(plan.root)
    with Tracking(plan, store) as shown:
        in_work(store, sft, [1, 2, 3])
        shown.code = 3
    assert recording.closed == [(rl.fingerprint[:16], "stopped")]
    with Tracking(plan, store) as shown:
        in_work(store, sft, [1, 2])  # it resumed from step 2
        in_work(store, sft, [1, 2, 3, 4], factor=10.0)
        shown.code = 1
    assert recording.points("loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert recording.opened == [rl.fingerprint[:16]] * 2 and recording.closed[-1][1] == "failed"
    # what joins the row of an earlier step is new
    path = in_work(store, sft, [1, 2, 3, 4], factor=10.0)
    path.write_text(path.read_text().replace('"step": 4,', '"step": 4, "val_loss": 0.5,'))
    with Tracking(plan, store):
        pass
    assert recording.points("val_loss") == [(4, 0.5)] and len(recording.points("loss")) == 4


def test_what_was_made_before_is_shown_from_the_store(tmp_path, recording):
    plan, sft, rl = plan_of(tmp_path)
    store = Store(plan.root)
    publish(store, sft, [1, 2])
    publish(store, rl, [1], "reward")
    for _ in range(2):
        with Tracking(plan, store) as shown:
            shown.code = 0
    assert recording.points("loss") == [(1, 1.0), (2, 2.0)] and recording.points("reward") == [(1, 1.0)]
    assert len(recording.opened) == 1  # the second session had nothing to add


def test_what_a_tracker_refuses_is_said_once_and_tried_again(tmp_path, recording, capsys):
    plan, sft, _ = plan_of(tmp_path)
    store = Store(plan.root)
    recording.refusals = 2
    with Tracking(plan, store):
        in_work(store, sft, [1])
        wait(lambda: recording.points("loss") == [(1, 1.0)])
    assert capsys.readouterr().out.splitlines() == [
        "recording: toy is not shown (ConnectionError: no route to host); it is tried again"
    ]
    recording.refusals = 10**6
    in_work(store, sft, [1, 2])
    with Tracking(plan, store):
        wait(lambda: recording.refusals < 10**6)
    assert "recording does not show all of toy yet; the same command adds the rest" in capsys.readouterr().out
    recording.refusals = 0
    with Tracking(plan, store):
        pass
    assert recording.points("loss") == [(1, 1.0), (2, 2.0)]


def test_two_sessions_never_write_into_one_run(tmp_path, recording, capsys):
    plan, sft, _ = plan_of(tmp_path)
    store = Store(plan.root)
    in_work(store, sft, [1])
    with Tracking(plan, store):
        wait(lambda: len(recording.opened) == 1)
        with Tracking(plan, store):
            pass
        assert len(recording.opened) == 1
    assert "recording: toy is shown by another run of it" in capsys.readouterr().out


def test_a_tracker_that_hangs_keeps_nobody(tmp_path, recording, monkeypatch, capsys):
    plan, sft, _ = plan_of(tmp_path)
    store = Store(plan.root)
    monkeypatch.setattr(tracking, "LEAVE", 0.1)
    monkeypatch.setattr(_Open, "log", lambda self, rows: time.sleep(30))
    in_work(store, sft, [1])
    begun = time.monotonic()
    with Tracking(plan, store) as shown:
        wait(lambda: recording.opened)
        shown.code = 3
    assert time.monotonic() - begun < 5
    assert "recording does not show all of toy yet" in capsys.readouterr().out


def test_without_trackers_nothing_is_written(tmp_path):
    plan = toy.plan(tmp_path, toy.steps("s"))
    with Tracking(plan, Store(plan.root)):
        pass
    assert not (tmp_path / "trackers").exists()


@pytest.mark.e2e
def test_a_real_run_is_in_tensorboard_over_a_fault(tmp_path, ray_session):
    pytest.importorskip("tensorboard", reason="needs the extra `trackers`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    from launch.execution.run import run

    stage = toy.stage("trains_with_a_fault", "s", steps=6, fault=4, resume=2)
    plan = toy.plan(tmp_path, stage)
    recipe = plan.branches[0].recipe
    limits = recipe.run.model_copy(update={"trackers": ["tensorboard"], "retries": 1})
    plan.branches[0] = type(plan.branches[0])(
        "toy", (), recipe.model_copy(update={"run": limits}), plan.branches[0].stages
    )
    assert run(plan) == 0
    (folder,) = (tmp_path / "trackers" / "tensorboard").iterdir()
    assert folder.name == f"toy-{stage.fingerprint[:16]}"
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    assert events.Tags()["tensors"] == ["sft/s/loss"]
    points = [(event.step, float(make_ndarray(event.tensor_proto))) for event in events.Tensors("sft/s/loss")]
    assert [step for step, _ in points] == list(range(1, 7))
    assert [value for _, value in points] == pytest.approx([1.0 / step for step in range(1, 7)])
    assert run(plan) == 0 and len(list(folder.iterdir())) == 1
