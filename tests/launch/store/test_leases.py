from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time

import pytest
import toy

from common.files import write_json
from common.processes import ATTEMPT_VARIABLE, attempt_processes
from launch.store import LeaseLost, Store
from launch.store.leases import HEARTBEAT, Driver, Heartbeat, end_run


def test_a_living_owner_keeps_its_stage_and_a_dead_one_loses_it_at_once(tmp_path):
    store, stage = Store(tmp_path), toy.steps()
    toy.signed_on(store, "first")
    assert store.acquire(stage, "first") and store.acquire(stage, "first")
    assert not store.acquire(stage, "second")
    # the number was given to another process since
    toy.signed_on(store, "first", started=1.0)
    assert store.acquire(stage, "second")
    toy.signed_on(store, "second")
    assert not store.acquire(stage, "third")
    store.release(stage, "third")
    assert store.owner(stage) == "second"
    store.release(stage, "second")
    assert store.acquire(stage, "third")


def test_a_driver_elsewhere_is_dead_when_its_counter_stands_still(tmp_path, monkeypatch):
    store = Store(tmp_path)
    clock = [0.0]
    monkeypatch.setattr("launch.store.leases.time.monotonic", lambda: clock[0])
    toy.signed_on(store, "far", host="elsewhere/1", counter=5)
    assert store.alive("far")
    clock[0] = 59.0
    assert store.alive("far")
    toy.signed_on(store, "far", host="elsewhere/1", counter=6)
    clock[0] = 100.0
    assert store.alive("far")
    clock[0] = 161.0
    assert not store.alive("far")


def test_takeover_kills_what_the_dead_driver_left(tmp_path):
    store, stage = Store(tmp_path), toy.steps()
    toy.signed_on(store, "a" * 32, started=1.0)
    assert store.acquire(stage, "a" * 32)
    env = {**os.environ, ATTEMPT_VARIABLE: "a" * 32 + ".7"}
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], env=env, start_new_session=True)
    other = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(100)"], env={**env, ATTEMPT_VARIABLE: "a" * 31 + "b.7"}
    )
    while not (attempt_processes("a" * 32) and attempt_processes("a" * 31 + "b")):
        time.sleep(0.01)
    assert store.acquire(stage, "second")
    assert left.wait(5) == -9
    assert other.poll() is None
    end_run("a" * 31 + "b")
    assert other.wait(5) == -9


def test_a_run_that_lost_its_lease_cannot_publish(tmp_path):
    store, stage = Store(tmp_path), toy.steps()
    assert store.acquire(stage, "slow")
    attempt = store.begin(stage)
    (store.temporary(stage, attempt) / "a.txt").write_text("a")
    other = Store(tmp_path)
    write_json(other.lease(stage), {"run": "other", "stage": stage.fingerprint})
    with pytest.raises(LeaseLost):
        store.publish(stage, attempt, "slow", started=0, seconds=0, peak_memory_bytes=0)
    assert store.find(stage) is None


def _claim(root, name, barrier, queue):
    store, stage = Store(root), toy.steps()
    with Heartbeat(store, "toy") as beat:
        barrier.wait()
        queue.put(store.acquire(stage, beat.run))
        barrier.wait()


def test_of_many_claims_at_once_one_wins(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(8), context.Queue()
    children = [context.Process(target=_claim, args=(tmp_path, str(n), barrier, queue)) for n in range(8)]
    for child in children:
        child.start()
    assert sorted(queue.get(timeout=30) for _ in children) == [False] * 7 + [True]
    for child in children:
        child.join()


def test_heartbeat_counts_and_signs_off(tmp_path):
    store = Store(tmp_path)
    with Heartbeat(store, "toy") as beat:
        (first,) = store.list_drivers()
        assert isinstance(first, Driver) and first.pid == os.getpid() and store.alive(beat.run)
        time.sleep(HEARTBEAT + 0.5)
        (later,) = store.list_drivers()
        assert later.counter > first.counter
        assert not beat.stop_requested()
        (store.drivers / f"{beat.run}.stop").touch()
        assert beat.stop_requested()
    assert store.list_drivers() == [] and not store.alive(beat.run)
