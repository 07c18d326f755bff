"""What the driver decides between two looks at Ray: classes of failure, back-off, blocking, signals, limits."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace

import pytest
import toy

from launch.execution import placements
from launch.execution.driver import Driver
from launch.execution.jobs import Job
from launch.execution.run import stop
from launch.execution.stopping import signals
from launch.graph.plan import plan_key
from launch.store import Full, Store
from launch.store.ledger import device_hours

SMALL = {
    "sft": {"tokens_per_micro_batch": 8, "micro_batch_size": 2, "dynamic_batch": True},
    "data": {"max_length": 2},
}


def driver_of(tmp_path, *stages, **limits):
    """A driver that has not started: no Ray, no heartbeat; what it says is in `said`."""
    driver = Driver(toy.plan(tmp_path, *stages, **limits), Store(tmp_path))
    driver.said = []
    driver.display = SimpleNamespace(say=driver.said.append)
    driver.beat = SimpleNamespace(run="run", stop_requested=lambda: False)
    return driver


def ended(outcome):
    return {"outcome": outcome, "message": "why", "seconds": 1.0, "peak_memory_bytes": 7}


def running(driver, stage):
    attempt = driver.store.begin(stage)
    job = Job([stage], dict(stage.placement), attempts={stage.fingerprint: attempt})
    driver.progress[stage.fingerprint].state = "running"
    driver.running.append(job)
    return driver.store.logs(stage) / f"attempt-{attempt}.stop"


def test_passing_failures_wait_twice_as_long_each_time_and_not_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.execution.driver.time.monotonic", lambda: 100.0)
    stage = toy.steps()
    driver = driver_of(tmp_path, stage, retries=3, backoff=5.0)
    progress = driver.progress[stage.fingerprint]
    for outcome, until in (("lost", 105.0), ("hung", 110.0), ("timeout", 120.0)):
        driver._take(stage, ended(outcome))
        assert (progress.state, progress.not_before) == ("waiting", until)
        assert driver._ready() == []
    driver._take(stage, ended("fault"))
    assert (progress.state, progress.message, progress.seconds) == ("failed", "fault: why", 4.0)
    assert driver.said[0] == "sft toy: lost: why; retry 1 of 3" and len(driver.said) == 3


@pytest.mark.parametrize("outcome", ["config", "disk"])
def test_wrong_settings_and_a_full_disk_are_never_repeated_and_block_what_follows(tmp_path, outcome):
    stage, sibling = toy.steps(), toy.steps("sibling")
    below = toy.steps("below", "rl", inputs={"model": stage})
    lower = toy.steps("lower", "generate", inputs={"model": below})
    driver = driver_of(tmp_path, stage, sibling, below, lower)
    driver._take(stage, ended(outcome))
    assert [progress.stage.label for progress in driver._ready()] == ["sibling"]
    states = {progress.stage.label: progress.state for progress in driver.progress.values()}
    assert states == {"toy": "failed", "sibling": "waiting", "below": "blocked", "lower": "blocked"}


def test_memory_is_halved_once_and_what_never_began_costs_no_retry(tmp_path):
    stage, plain = toy.steps(sections=SMALL), toy.steps("plain")
    driver = driver_of(tmp_path, stage, plain, retries=0)
    driver._take(stage, ended("unstarted"))
    assert driver.progress[stage.fingerprint].state == "waiting"
    driver._take(stage, ended("oom"))
    assert driver.progress[stage.fingerprint].state == "waiting" and driver.progress[stage.fingerprint].halved
    driver._take(stage, ended("oom"))
    assert driver.progress[stage.fingerprint].message == "oom: why"
    driver._take(plain, ended("oom"))  # it has no micro-batch
    assert driver.progress[plain.fingerprint].state == "failed"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_every_running_stage_to_stop_and_is_undone_afterwards(tmp_path, number):
    stage = toy.steps()
    driver = driver_of(tmp_path, stage)
    asked = running(driver, stage)
    before = signal.getsignal(number)
    with signals(driver._ask_to_stop):
        driver._notice_stop()
        assert not driver.stopping and not asked.exists()
        os.kill(os.getpid(), number)
        driver._notice_stop()
        assert driver.stopping == f"{number.name}; the same command continues" and asked.exists()
    assert signal.getsignal(number) is before
    driver._take(stage, ended("stopped"))
    assert driver.progress[stage.fingerprint].state == "waiting" and not driver.said


def test_used_up_device_hours_let_running_stages_end_and_a_signal_still_stops_them(tmp_path):
    stage = toy.steps(placement={"gpus_per_node": 2})
    driver = driver_of(tmp_path, stage, max_device_hours=1.0)
    asked = running(driver, stage)
    driver.device_seconds = 3590.0
    driver.running[0].started = time.monotonic()
    driver._notice_stop()
    assert not driver.stopping
    driver.running[0].started -= 5.0  # five seconds on two devices
    driver._notice_stop()
    assert driver.stopping == "run.max_device_hours=1 is used up" and not asked.exists()
    with signals(driver._ask_to_stop):
        os.kill(os.getpid(), signal.SIGTERM)
        driver._notice_stop()
    assert asked.exists()


def test_launch_stop_ends_running_stages_after_the_device_hours_are_used_up(tmp_path):
    stage = toy.steps(placement={"gpus_per_node": 1})
    driver = driver_of(tmp_path, stage, max_device_hours=1.0)
    asked = running(driver, stage)
    driver.running[0].started, driver.device_seconds = time.monotonic(), 3700.0
    driver._notice_stop()
    assert not asked.exists()
    driver.beat.stop_requested = lambda: True
    driver._notice_stop()
    driver._notice_stop()
    assert driver.stopping == "stopped on request; the same command continues" and asked.exists()


def test_a_queued_stage_reserves_no_device_that_a_child_of_the_cluster_is_about_to_take(tmp_path, monkeypatch):
    first, second = toy.steps("first"), toy.steps("second")
    driver = driver_of(tmp_path, first, second)
    driver.devices = 2.0
    placement = {"nodes": 2, "gpus_per_node": 1, "cpus": 1.0, "strategy": "PACK"}
    driver.running = [Job([first], placement, lent=2.0)]
    waiting = Job([second], placement, group="a group that holds both devices")
    driver.queued = [waiting]
    released = []
    monkeypatch.setattr(placements, "give_back", released.append)
    monkeypatch.setattr(placements, "granted", lambda _: pytest.fail("it asked for devices that are lent"))
    driver._start_queued()
    assert released == [waiting] and driver.queued == [waiting]


def test_what_a_shared_child_has_published_is_done_before_the_child_ends(tmp_path, monkeypatch):
    first, second = toy.stage("engine", "a", "generate"), toy.stage("engine", "b", "generate")
    below = toy.steps("below", "measure", inputs={"generations": first})
    driver = driver_of(tmp_path, first, second, below)
    driver.claims = SimpleNamespace(push=lambda stage: None)
    attempts = {stage.fingerprint: driver.store.begin(stage) for stage in (first, second)}
    job = Job([first, second], dict(first.placement), attempts=attempts)
    driver._take_published(job)
    assert job.stages == [first, second]
    driver.store.finish(first, attempts[first.fingerprint], ended("ok"))
    driver._take_published(job)
    assert job.stages == [second] and driver.progress[first.fingerprint].state == "done"
    assert [progress.stage.label for progress in driver._ready()] == ["b", "below"]


def test_a_fault_that_repeats_in_the_same_place_is_not_tried_a_third_time(tmp_path):
    stage, moving = toy.steps(), toy.steps("moving")
    driver = driver_of(tmp_path, stage, moving, retries=5, backoff=0.0)
    progress = driver.progress[stage.fingerprint]
    driver._take(stage, {**ended("fault"), "traceback": "a"})
    assert progress.state == "waiting"
    driver._take(stage, {**ended("fault"), "traceback": "a"})
    assert progress.state == "failed" and progress.message == "fault: why (twice in the same place: not tried again)"
    for mark in ("a", "b", "a", "", ""):
        driver._take(moving, {**ended("fault"), "traceback": mark})
        assert driver.progress[moving.fingerprint].state == "waiting"


def test_used_up_device_hours_do_not_stop_what_takes_no_device(tmp_path, monkeypatch):
    done = toy.steps("done", placement={"gpus_per_node": 1})
    grading = toy.steps("grading", "measure", inputs={"generations": done})
    training = toy.steps("training", "rl", inputs={"model": done}, placement={"gpus_per_node": 1})
    below = toy.steps("below", "measure", inputs={"generations": training})
    driver = driver_of(tmp_path, done, grading, training, below, max_device_hours=1.0)
    driver.progress[done.fingerprint].state = "done"
    cpu, gpu = (Job([s], dict(s.placement)) for s in (grading, training))
    driver.queued = [cpu, gpu]
    monkeypatch.setattr(placements, "give_back", lambda job: None)
    driver.device_seconds = 3601.0
    driver._notice_stop()
    assert driver.stopping == "run.max_device_hours=1 is used up" and driver.queued == [cpu]
    assert [progress.stage.label for progress in driver._ready()] == ["grading"]
    driver._ready()
    states = {progress.stage.label: progress.state for progress in driver.progress.values()}
    assert states == {"done": "done", "grading": "waiting", "training": "stopped", "below": "stopped"}


def test_a_plan_without_devices_is_not_stopped_by_device_hours(tmp_path):
    driver = driver_of(tmp_path, toy.steps(), max_device_hours=0.0)
    driver.device_seconds = 3600.0
    driver._notice_stop()
    assert driver.stopping == ""


def test_device_hours_of_earlier_runs_of_these_stages_count(tmp_path):
    store = Store(tmp_path)
    ours, other = (toy.steps(name, placement={"gpus_per_node": 4}) for name in ("ours", "other"))
    for stage in (ours, other):
        for attempt, outcome in ((1, "fault"), (2, "ok")):
            store.acquire(stage, "run")
            store.begin(stage)
            store.finish(stage, attempt, {"outcome": outcome, "message": "", "seconds": 900.0})
    assert device_hours(tmp_path, [ours.fingerprint]) == pytest.approx(2.0)
    assert device_hours(tmp_path, []) == 0.0


def test_a_disk_that_is_full_when_a_stage_begins_fails_that_stage_alone(tmp_path, monkeypatch):
    stage, sibling = toy.steps(), toy.steps("sibling")
    driver = driver_of(tmp_path, stage, sibling)
    real = Store.begin

    def begin(store, begun):
        if begun is stage:
            raise Full("no space left below the store: nothing was published")
        return real(store, begun)

    monkeypatch.setattr(Store, "begin", begin)
    monkeypatch.setattr(placements, "give_back", lambda job: None)
    monkeypatch.setattr(placements, "start", lambda job, description: None)
    driver.estimates = {mark: SimpleNamespace(flops=0.0) for mark in (stage.fingerprint, sibling.fingerprint)}
    driver.cluster, driver.temporary = None, "/tmp"
    for one in (stage, sibling):
        driver._start(Job([one], dict(one.placement)))
    assert driver.progress[stage.fingerprint].state == "failed"
    assert driver.progress[stage.fingerprint].message.startswith("disk: no space left below")
    assert driver.progress[sibling.fingerprint].state == "running"


def test_stop_ends_the_drivers_of_this_plan_alone_and_not_for_ever(tmp_path, monkeypatch, capsys):
    store, stage = Store(tmp_path), toy.steps()
    ours, other = toy.plan(tmp_path, stage, grace=1.0), toy.plan(tmp_path, toy.steps("other"))
    assert plan_key(ours) != plan_key(other)
    toy.signed_on(store, "ours", plan=plan_key(ours))
    toy.signed_on(store, "other", plan=plan_key(other))
    monkeypatch.setattr("launch.execution.run.LEAVING", 0.3)
    begun = time.monotonic()
    assert stop(ours) == 1  # this process does not listen
    assert 1.2 < time.monotonic() - begun < 10
    text = capsys.readouterr().out
    assert "is still there after 1.3 s" in text and "look at that host" in text
    assert (store.drivers / "ours.stop").exists() and not (store.drivers / "other.stop").exists()
    (store.drivers / "ours.json").unlink()
    assert stop(ours) == 1
    assert "1 other runs of toy are: give `stop` the overrides that one was started with" in capsys.readouterr().out
