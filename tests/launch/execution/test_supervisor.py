from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pynvml
import pytest
import toy
from fake_nvml import FakeDriver

from common.files import read_json
from common.processes import attempt_processes, start_time
from launch.execution.jobs import Job
from launch.execution.requests import BEGIN_NO_MORE, ask, request_of
from launch.execution.supervisor import supervise
from launch.store import Full, Store
from launch.store.gc import collect
from launch.store.pauses import has_paused, pausing, scores_at


def job(store, *stages, run="run", **changes):
    """A supervisor's job for stages without inputs, claimed and begun as the driver does."""
    entries = []
    for stage in stages:
        assert store.acquire(stage, run)
        attempt = store.begin(stage)
        request = request_of(stage, attempt, store, {}, stage.settings)
        entries.append({"stage": stage, "attempt": attempt, "request": str(request), "verify": [], "flops": 0.0})
    limits = {"timeout": 60.0, "silence": 60.0, "grace": 1.0}
    described = {"root": str(store.root), "run": run, "tag": f"{run}{os.getpid()}.1", "stages": entries}
    return {**described, "cluster": None, "temporary": "/tmp", "cwd": os.getcwd(), **limits, **changes}


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def on_device_0(tmp_path, monkeypatch):
    """Gives (store, stage, answer): a stage on device 0 of 2, and what sets the MiB in use, or an error, in turn."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a")
    stage = toy.steps(placement={"gpus_per_node": 1}, platform={"name": "gpu"})
    return Store(tmp_path), stage, lambda *answers: FakeDriver(monkeypatch, *answers)


def test_a_stage_waits_until_its_own_device_is_free(on_device_0):
    store, stage, answer = on_device_0
    driver = answer((30000, 70000), (4, 70000))
    (result,) = supervise(job(store, stage))
    assert result["outcome"] == "ok" and driver.opened == 2


def test_a_device_that_stays_in_use_is_named_and_nothing_starts(on_device_0, monkeypatch):
    store, stage, answer = on_device_0
    monkeypatch.setattr("launch.execution.supervisor.FREE_WITHIN", 0.6)
    answer((30000, 70000))
    (result,) = supervise(job(store, stage))
    assert (result["outcome"], result["message"]) == (
        "fault",
        "device 0 has 30000 MiB in use after 0.6 s; end the process that holds it",
    )
    assert store.find(stage) is None and not list(store.logs(stage).glob("*.log"))
    answer(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    (result,) = supervise(job(store, stage))
    assert result["outcome"] == "config" and "driver does not say" in result["message"]


def test_runs_a_stage_and_publishes_it(tmp_path):
    store, stage = Store(tmp_path), toy.steps(count=3)
    (result,) = supervise(job(store, stage))
    assert result["outcome"] == "ok" and result["peak_memory_bytes"] > 5e6
    record = store.find(stage)
    assert record is not None and record.bytes == result["bytes"]
    assert read_json(store.logs(stage) / "progress.json")["done"] == 3
    assert [row["outcome"] for row in store.costs()] == ["ok"]


def test_a_stage_that_pauses_publishes_nothing_and_goes_on_from_there(tmp_path, monkeypatch):
    monkeypatch.setattr("launch.store.leases.PATIENCE", 1.0)  # the driver of these jobs has no file
    store = Store(tmp_path)
    whole = toy.stage("pauses", kind="rl", sections={"rl": {"pause_at": None, "steps": 5}})
    for step in (2, 3):
        stage = pausing(whole, step)
        assert stage.fingerprint == whole.fingerprint and not has_paused(store, stage)
        (result,) = supervise(job(store, stage))
        assert (result["outcome"], result["message"]) == ("paused", f"paused after step {step}")
        assert has_paused(store, stage) and store.find(stage) is None
        assert scores_at(store, stage, step) == {"validation_pass_rate": step / 100}
        assert store.costs()[-1]["outcome"] == "paused"
    assert set(collect(store, delete=True)) & {store.scratch(whole)} == set(), "gc keeps what it goes on from"
    (result,) = supervise(job(store, whole))
    assert result["outcome"] == "ok"
    assert (store.directory(whole) / "value.txt").read_text() == "5" and not store.scratch(whole).exists()


def test_secrets_of_the_environment_reach_the_child_and_no_file(tmp_path):
    store = Store(tmp_path)
    stage = toy.stage("says_environment", platform={"env": {"TOY": "secret-value"}})
    settings = stage.settings
    (result,) = supervise(job(store, stage))
    assert result["outcome"] == "ok"
    assert (
        json.loads((store.directory(stage) / "environment.json").read_text())["TOY"]
        == settings["platform"]["env"]["TOY"]
    )
    written = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "environment.json"]
    assert written and not any(b"secret-value" in p.read_bytes() for p in written)


@pytest.mark.parametrize(
    ("function", "toy_settings", "outcome", "message"),
    [
        ("bad_config", {}, "config", "toy.rows: row 7 has no answer; give one"),
        ("fails_times", {"times": 1}, "fault", "RuntimeError: a passing fault"),
        ("killed", {}, "fault", "killed by signal 9 (SIGKILL)"),
        ("disk_full", {}, "disk", "no space left on the disk"),
        ("weights_find_no_space", {}, "disk", "no space left on the disk (SafetensorError: "),
        ("a_rank_finds_no_space", {}, "disk", "no space left on the disk (OSError: [Errno 28] No space left on device"),
        ("a_rank_fails", {}, "fault", "KeyError: 'layers.0' (then RuntimeError: a rank ended with status 1)"),
        ("nothing_can_be_written", {}, "disk", "no space left on the disk"),
        ("library_refuses", {}, "fault", "ValueError: Free memory on device is less than desired"),
        ("does_not_exist", {}, "fault", "AttributeError"),
    ],
)
def test_failures_have_a_class_and_publish_nothing(tmp_path, function, toy_settings, outcome, message):
    store, stage = Store(tmp_path), toy.stage(function, **toy_settings)
    (result,) = supervise(job(store, stage))
    assert result["outcome"] == outcome and message in result["message"]
    assert store.find(stage) is None and not store.directory(stage).exists()
    if function not in ("killed", "nothing_can_be_written"):
        assert "Traceback" in (store.logs(stage) / "latest").read_text()


def test_stages_of_one_job_share_a_child_and_keep_their_own_logs_and_records(tmp_path):
    store = Store(tmp_path)
    stages = [toy.stage("engine", f"e{n}", "generate") for n in range(3)]
    bad = toy.stage("bad_config", "bad", "generate")
    results = supervise(job(store, stages[0], bad, *stages[1:]))
    assert [result["outcome"] for result in results] == ["ok", "config", "ok", "ok"]
    pids = {json.loads((store.directory(s) / "timings.jsonl").read_text())["pid"] for s in stages}
    assert len(pids) == 1
    assert "row 7" in (store.logs(bad) / "latest").read_text()
    assert "row 7" not in (store.logs(stages[1]) / "latest").read_text()


def test_a_shared_child_that_is_asked_to_begins_no_more(tmp_path):
    """What it was started for is made and published, even if asked before: `run.max_device_hours` is used up."""
    store = Store(tmp_path)
    first, second = toy.steps("first", count=5, sleep=0.1), toy.steps("second")
    described = job(store, first, second)
    entries = {entry["stage"].fingerprint: entry["attempt"] for entry in described["stages"]}
    ask([Job([first, second], {}, attempts=entries)], BEGIN_NO_MORE, store)
    outcomes = [result["outcome"] for result in supervise(described)]
    assert outcomes == ["ok", "unstarted"] and store.has(first) and not store.has(second)


def test_a_fault_ends_the_shared_child_and_the_rest_is_unstarted(tmp_path):
    store = Store(tmp_path)
    first, rest = toy.stage("fails_times", "f", "generate", times=1), toy.stage("engine", "e", "generate")
    results = supervise(job(store, first, rest))
    assert [result["outcome"] for result in results] == ["fault", "unstarted"]


def test_a_damaged_input_is_noticed_before_the_child_starts(tmp_path):
    store, source = Store(tmp_path), toy.steps("source")
    supervise(job(store, source))
    value = store.directory(source) / "part" / "value.txt"
    value.write_text(value.read_text().translate(str.maketrans("0123456789", "1234567890")))
    stage = toy.steps("user", inputs={"data": source})
    described = job(store, stage)
    described["stages"][0]["verify"] = [(str(store.directory(source)), source.fingerprint, "")]
    (result,) = supervise(described)
    assert result["outcome"] == "config" and "part/value.txt differs from its sha256" in result["message"]
    assert not (store.logs(stage) / "attempt-1.log").exists()


def test_peak_memory_counts_the_tree(tmp_path):
    store, stage = Store(tmp_path), toy.stage("memory")
    (result,) = supervise(job(store, stage))
    assert 3.1e8 < result["peak_memory_bytes"] < 5e8


def test_silence_and_time_out_end_a_stage_that_ignores_sigterm(tmp_path):
    store = Store(tmp_path)
    (result,) = supervise(job(store, toy.stage("hangs", "silent"), silence=1.0, grace=0.5))
    assert result["outcome"] == "hung" and "run.silence=1" in result["message"]
    (result,) = supervise(job(store, toy.stage("hangs", "slow"), timeout=1.0, grace=0.5))
    assert result["outcome"] == "timeout" and "run.timeout=1" in result["message"]


def test_a_loop_that_reports_without_progress_counts_as_hung(tmp_path):
    store = Store(tmp_path)
    (result,) = supervise(job(store, toy.stage("reports_the_same"), silence=2.0, grace=0.5))
    assert result["outcome"] == "hung" and "no progress made and no log line for run.silence=2 s" in result["message"]


def test_faults_at_one_place_carry_one_mark(tmp_path):
    store, stage = Store(tmp_path), toy.stage("library_refuses")
    marks = {supervise(job(store, stage))[0]["traceback"] for _ in range(2)}
    assert len(marks) == 1 and marks != {""}


def test_a_result_that_finds_no_space_ends_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise Full("no space left below the store")

    store, stage, bad = Store(tmp_path), toy.steps(), toy.stage("fails_times", times=1)
    monkeypatch.setattr(Store, "finish", full)
    assert supervise(job(store, stage))[0]["outcome"] == "ok" and store.has(stage)
    assert supervise(job(store, bad))[0]["outcome"] == "disk"


def test_progress_keeps_a_stage_alive(tmp_path):
    store, stage = Store(tmp_path), toy.steps(count=16, sleep=0.4)
    (result,) = supervise(job(store, stage, silence=5.0))
    assert result["outcome"] == "ok"


def test_stop_file_ends_a_stage_which_resumes_later(tmp_path):
    store, stage = Store(tmp_path), toy.steps(count=30, sleep=0.1)
    described = job(store, stage)
    logs = store.logs(stage)
    timer = threading.Thread(
        target=lambda: (
            until(lambda: (store.scratch(stage) / "state.json").exists()),
            (logs / "attempt-1.stop").touch(),
        )
    )
    timer.start()
    (result,) = supervise(described)
    timer.join()
    assert result["outcome"] == "stopped"
    at, _ = json.loads((store.scratch(stage) / "state.json").read_text())
    assert 0 < at < 30
    (result,) = supervise(job(store, stage))
    undisturbed = Store(tmp_path / "undisturbed")
    supervise(job(undisturbed, toy.steps(count=30, sleep=0.0)))
    assert (store.directory(stage) / "part/value.txt").read_text() == (
        undisturbed.directory(toy.steps(count=30, sleep=0.0)) / "part/value.txt"
    ).read_text()


SUPERVISOR = """
import pickle, sys
from launch.execution.supervisor import supervise
supervise(pickle.load(open(sys.argv[1], "rb")))
"""


@pytest.mark.parametrize("victim", ["supervisor", "guard", "child"])
def test_no_process_outlives_its_stage(tmp_path, victim):
    """kill -9 of the supervisor, the guard or the child ends everything, even what made a session of its own."""
    store, pids = Store(tmp_path / "store"), tmp_path / "pids"
    stage = toy.stage("grandchildren", pids=str(pids))
    described = job(store, stage)
    (tmp_path / "job").write_bytes(pickle.dumps(described))
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(tmp_path / "job")])
    until(lambda: pids.exists() and len(pids.read_text().split()) == 3)
    child, guard, orphan = map(int, pids.read_text().split())
    assert all(start_time(pid) for pid in (child, guard, orphan))
    os.kill({"supervisor": supervisor.pid, "guard": guard, "child": child}[victim], signal.SIGKILL)
    until(lambda: not any(start_time(pid) for pid in (child, guard, orphan)))
    assert supervisor.wait(30) == (-9 if victim == "supervisor" else 0)
    assert attempt_processes(described["tag"]) == []
    assert store.find(stage) is None
    if victim != "supervisor":
        assert read_json(store.logs(stage) / "attempt-1.result.json")["outcome"] == "fault"


def test_leftovers_of_a_stage_that_succeeded_are_ended(tmp_path):
    store, pids = Store(tmp_path / "store"), tmp_path / "pids"
    stage = toy.stage("grandchildren", pids=str(pids))
    pids.with_suffix(".go").touch()
    (result,) = supervise(job(store, stage))
    assert result["outcome"] == "ok"
    assert not any(start_time(int(pid)) for pid in pids.read_text().split())


def test_shared_memory_of_a_killed_stage_is_removed(tmp_path):
    store, name = Store(tmp_path), tmp_path / "segment"
    stage = toy.stage("shares_memory", name=str(name))
    (result,) = supervise(job(store, stage))
    assert result["outcome"] == "fault"
    assert not Path("/dev/shm", name.read_text()).exists()
