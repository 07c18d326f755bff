"""SIGTERM to everything at once, a cluster that is gone, and the last resort."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import toy

from common.processes import attempt_processes
from launch.execution import cluster
from launch.execution.stopping import last_resort, signals
from launch.store import Store

# Leaving Ray takes a loaded machine seconds, in which nothing that it needs may end.
DRIVER = """
import pickle, sys, time
import ray._private.worker as worker
from launch.execution.run import run

def slowly(*arguments, leave=worker.disconnect):
    time.sleep(1.5)
    leave(*arguments)

worker.disconnect = slowly
code = run(pickle.load(open(sys.argv[1], "rb")))
open(f"{sys.argv[1]}.code", "w").write(str(code))
sys.exit(code)
"""


def started(tmp_path, stage, *, below=(), **limits):
    """A driver in a process group of its own, once its stage has made a step; below: a command that starts it."""
    plan = toy.plan(tmp_path / "store", stage, **limits)
    (tmp_path / "plan.pickle").write_bytes(pickle.dumps(plan))
    log = (tmp_path / "driver.log").open("wb")
    command = [*below, sys.executable, "-c", DRIVER, str(tmp_path / "plan.pickle")]
    driver = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    store, deadline = Store(plan.root), time.monotonic() + 120
    while not (store.scratch(stage) / "state.json").exists():
        assert driver.poll() is None and time.monotonic() < deadline, (tmp_path / "driver.log").read_text()
        time.sleep(0.05)
    return driver, store


def all_below(pid):
    return [pid, *(process.pid for process in psutil.Process(pid).children(recursive=True))]


@pytest.mark.e2e
@pytest.mark.parametrize("everyone", [False, True], ids=["process-group", "control-group"])
def test_sigterm_to_everything_at_once_ends_within_the_grace_with_code_3_and_no_lease(tmp_path, everyone):
    grace = 20.0
    stage = toy.steps(count=2000, sleep=0.05)
    # a process whose parent has ended with the same signal is ended by Ray at once, if its raylet is gone
    shell = () if everyone else ("sh", "-c", '"$@" & wait', "sh")
    driver, store = started(tmp_path, stage, below=shell, grace=grace)
    ((run, pid),) = [(one.run, one.pid) for one in store.list_drivers()]
    below = all_below(driver.pid)
    assert len(below) > 4  # Ray's daemons and workers, the guard, the child
    begun = time.monotonic()
    if everyone:  # as systemd and Slurm do
        for one in below:
            os.kill(one, signal.SIGTERM)
    else:  # as `timeout` does
        os.killpg(driver.pid, signal.SIGTERM)
    driver.wait(timeout=60)
    while psutil.pid_exists(pid) and time.monotonic() - begun < 60:
        time.sleep(0.05)
    text, code = (tmp_path / "driver.log").read_text(), tmp_path / "plan.pickle.code"
    assert code.is_file() and code.read_text() == "3" and time.monotonic() - begun < grace, text
    assert "1 stopped (SIGTERM; the same command continues)" in text and "Traceback" not in text
    assert store.owner(stage) is None and store.list_drivers() == [] and not attempt_processes(run)
    assert [row["outcome"] for row in store.costs()] == ["stopped"]


@pytest.mark.e2e
def test_a_stage_that_ignores_sigterm_is_killed_within_the_grace(tmp_path):
    grace = 16.0
    first = toy.steps("first", count=1)
    hanging = toy.stage("hangs", "hanging", inputs={"data": first})
    plan = toy.plan(tmp_path / "store", first, hanging, grace=grace)
    (tmp_path / "plan.pickle").write_bytes(pickle.dumps(plan))
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "plan.pickle")]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    store, deadline = Store(plan.root), time.monotonic() + 120
    while not (store.logs(hanging) / "attempt-1.log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(2.0)
    begun = time.monotonic()
    os.killpg(driver.pid, signal.SIGTERM)
    assert driver.wait(timeout=60) == 3
    assert time.monotonic() - begun < grace and store.owner(hanging) is None


@pytest.mark.e2e
def test_a_driver_whose_cluster_is_gone_leaves_without_it(tmp_path):
    """Ray's daemons are killed at the moment of the signal: every call to Ray waits or fails from then on."""
    stage = toy.steps(count=2000, sleep=0.05)
    driver, store = started(tmp_path, stage, grace=12.0)
    (run,) = [one.run for one in store.list_drivers()]
    daemons = [p for p in psutil.Process(driver.pid).children() if p.name() in ("gcs_server", "raylet")]
    assert len(daemons) == 2
    begun = time.monotonic()
    os.kill(driver.pid, signal.SIGTERM)
    for daemon in daemons:
        daemon.kill()
    code = driver.wait(timeout=60)
    text = (tmp_path / "driver.log").read_text()
    assert code == 3 and time.monotonic() - begun < 12.0, text
    assert store.owner(stage) is None and store.list_drivers() == [] and not attempt_processes(run)


BLOCKS = "import signal, time; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}); print(1, flush=True)"


def test_a_daemon_that_was_asked_to_end_lives_until_the_driver_has_left_it(monkeypatch):
    connected = threading.Event()
    connected.set()
    monkeypatch.setattr(cluster, "_is_connected", connected.is_set)
    command = [sys.executable, "-c", f"{BLOCKS}; time.sleep(60)"]
    asked, other = (subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2))
    try:
        for daemon in (asked, other):
            assert daemon.stdout is not None and daemon.stdout.readline()
        asked.terminate()
        with cluster._ending_who_is_asked():
            time.sleep(0.3)
            assert asked.poll() is None
            connected.clear()
            assert asked.wait(30) == -signal.SIGKILL and other.poll() is None
    finally:
        for daemon in (asked, other):
            daemon.kill()
            daemon.wait()


def test_the_last_resort_acts_only_when_the_context_does_not_end_in_time():
    acted, asked = threading.Event(), []
    with signals(asked.append), last_resort(0.1, acted.set):
        assert not acted.wait(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
        assert acted.wait(10)
    assert asked == ["SIGTERM"]
    acted.clear()
    with signals(asked.append), last_resort(0.5, acted.set):
        os.kill(os.getpid(), signal.SIGINT)
    assert not acted.wait(1.0) and asked == ["SIGTERM", "SIGINT"]
