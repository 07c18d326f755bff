from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import toy
from leftovers import left_behind, segments

from common.files import read_json
from common.processes import attempt_processes
from common.settings import rebuild
from launch import stages
from launch.execution.jobs import FINISHED, halve
from launch.execution.run import run, stop
from launch.store import Store
from launch.store.leases import Heartbeat

GPU = {"gpus_per_node": 1}
pytestmark = pytest.mark.e2e


def chain(tmp_path, *, sleep=0.0, count=3, **limits):
    """prepare -> two SFT stages -> an RL stage each -> two evaluations each."""
    data = toy.steps("data", "prepare", count=count, sleep=sleep)
    stages = [data]
    for seed in (1, 2):
        sft = toy.steps(f"s{seed}", seed=seed, inputs={"data": data}, placement=GPU, count=count, sleep=sleep)
        rl = toy.steps(f"r{seed}", "rl", seed=seed, inputs={"model": sft}, placement=GPU, count=count, sleep=sleep)
        evals = [toy.steps(f"e{seed}.{s.kind}", "generate", inputs={"model": s}, placement=GPU) for s in (sft, rl)]
        stages += [sft, rl, *evals]
    return toy.plan(tmp_path, *stages, **limits)


def payloads(plan):
    store = Store(plan.root)
    found = {}
    for stage in plan.stages.values():
        record = store.find(stage)
        assert record is not None, f"{stage.kind} {stage.label} has no record"
        store.verify(store.directory(stage), stage.fingerprint)
        found[stage.address] = record.comparable()
    return found


def outcomes(plan, stage):
    return [row["outcome"] for row in Store(plan.root).costs() if row["fingerprint"] == stage.fingerprint]


def test_runs_a_graph_once_and_then_nothing(tmp_path, ray_session, capsys):
    plan = chain(tmp_path / "one")
    assert run(plan) == 0
    first = payloads(plan)
    store = Store(plan.root)
    assert len(store.costs()) == len(plan.stages)
    evaluated = [s for s in plan.stages.values() if s.kind == "generate"]
    pids = {json.loads((store.directory(s) / "timings.jsonl").read_text())["pid"] for s in evaluated}
    # those that are ready together share a child; how many are depends on when the others end
    assert len(pids) < len(evaluated)
    ends = [store.find(s).started + store.find(s).seconds for s in plan.stages.values() if s.kind == "rl"]
    # no device idles until the last RL stage ends, and none evaluates while another stage waits for it
    assert min(store.find(s).started for s in evaluated) > min(ends) - 1
    capsys.readouterr()
    assert run(plan) == 0
    assert len(store.costs()) == len(plan.stages)
    assert "9 cached" in capsys.readouterr().out
    assert payloads(plan) == first
    assert not list(store.root.glob("*/.tmp-*")) and not list(store.root.glob("*/.lease-*"))
    assert store.list_drivers() == []


def test_failures_by_class_block_descendants_and_spare_siblings(tmp_path, ray_session, capsys):
    bad = toy.stage("bad_config", "bad")
    below = toy.steps("below", "rl", inputs={"model": bad})
    lower = toy.steps("lower", "generate", inputs={"model": below})
    passing = toy.stage("fails_times", "passing", times=2)
    lasting = toy.stage("fails_times", "lasting", times=5)
    full = toy.stage("disk_full", "full")
    small = {
        "sft": {"tokens_per_micro_batch": 8, "micro_batch_size": 2, "dynamic_batch": True},
        "data": {"max_length": 2},
    }
    halved = toy.stage("out_of_memory", "halved", sections=small, fits=4)
    too_big = toy.stage("out_of_memory", "too_big", sections=small, fits=3)
    sibling = toy.steps("sibling")
    plan = toy.plan(tmp_path, bad, below, lower, passing, lasting, full, halved, too_big, sibling, retries=2)
    assert run(plan) == 1
    store = Store(tmp_path)
    assert outcomes(plan, bad) == ["config"]
    assert outcomes(plan, full) == ["disk"]
    assert outcomes(plan, passing) == ["fault", "fault", "ok"]
    assert outcomes(plan, lasting) == ["fault"] * 3
    assert outcomes(plan, halved) == ["oom", "ok"] and outcomes(plan, too_big) == ["oom", "oom"]
    assert (store.directory(halved) / "tokens.txt").read_text() == "4"
    assert (store.directory(passing) / "calls.txt").read_text() == "3"  # scratch survives a fault
    assert store.has(sibling) and not outcomes(plan, below) and not outcomes(plan, lower)
    text = capsys.readouterr().out
    assert "3 done, 4 failed, 2 blocked" in text
    assert "failed: sft bad: config: toy.rows: row 7 has no answer; give one" in text


def test_a_checkpoint_is_selected_and_a_damaged_one_refused(tmp_path, ray_session, capsys):
    model = toy.stage("model", "m", seed=1)
    best = toy.steps("best", "rl", inputs={"model": (model, "checkpoint:best")})
    missing = toy.steps("missing", "rl", inputs={"model": (model, "checkpoint:7")})
    plan = toy.plan(tmp_path, model, best, missing)
    assert run(plan) == 1
    store = Store(tmp_path)
    request = read_json(store.logs(best) / "attempt-1.request.json")
    assert Path(request["inputs"]["model"]).name == "step_1"
    assert "has no checkpoint of step 7" in capsys.readouterr().out
    weights = store.directory(model) / "checkpoints" / "step_2" / "weights.txt"
    weights.write_text(weights.read_text().replace("seed 1", "seed 2"))
    final = toy.steps("final", "rl", inputs={"model": (model, "checkpoint:final")})
    assert run(toy.plan(tmp_path, model, final)) == 1
    assert "weights.txt differs from its sha256" in capsys.readouterr().out
    assert not store.has(final)


def test_two_drivers_at_once_share_the_work(tmp_path, ray_session):
    plan = chain(tmp_path, sleep=0.1)
    codes = []
    second = threading.Thread(target=lambda: codes.append(run(plan)))
    second.start()
    codes.append(run(plan))
    second.join()
    assert codes == [0, 0]
    payloads(plan)
    for stage in plan.stages.values():
        assert outcomes(plan, stage) == ["ok"]


def test_a_device_that_becomes_free_takes_its_share_of_stages_that_share_an_engine(tmp_path, ray_session, monkeypatch):
    monkeypatch.setattr("launch.execution.sharing.IDLE", 0.2)
    # Less than a dozen stages ahead give, however fast the machine is.
    monkeypatch.setattr("launch.execution.sharing.START", 2.5)
    other = toy.steps("other", placement=GPU, count=4, sleep=0.1)
    group = [toy.steps(f"e{n}", "generate", placement=GPU, count=5, sleep=0.1) for n in range(16)]
    plan = toy.plan(tmp_path, other, *group)
    assert run(plan) == 0
    store = Store(tmp_path)
    made = [json.loads((store.directory(stage) / "timings.jsonl").read_text()) for stage in group]
    children = [one["pid"] for one in sorted(made, key=lambda one: one["time"])]
    assert len(set(children)) >= 3  # one while the other stage had its device, then one on each
    assert children.count(children[0]) < len(group) / 2
    assert {row["outcome"] for row in store.costs()} <= {"ok", "unstarted"}


def test_stop_ends_the_stages_and_the_same_command_continues(tmp_path, ray_session, capsys):
    stage = toy.steps(count=200, sleep=0.1)
    plan = toy.plan(tmp_path, stage)
    store = Store(tmp_path)

    def ask():
        while not (store.scratch(stage) / "state.json").exists():
            time.sleep(0.05)
        assert stop(plan) == 0

    asking = threading.Thread(target=ask)
    asking.start()
    assert run(plan) == 3
    asking.join()
    assert "1 stopped" in capsys.readouterr().out
    assert store.list_drivers() == [] and store.owner(stage) is None
    assert 0 < json.loads((store.scratch(stage) / "state.json").read_text())[0] < 200
    assert stop(plan) == 1


def test_device_hours_limit_lets_running_stages_finish_and_starts_no_more(tmp_path, ray_session):
    first = toy.steps("first", count=5, sleep=0.1, placement=GPU)
    second = toy.steps("second", "rl", inputs={"model": first}, placement=GPU)
    plan = toy.plan(tmp_path, first, second, max_device_hours=1e-6)
    assert run(plan) == 3
    assert Store(tmp_path).has(first) and not Store(tmp_path).has(second)


def test_nothing_to_do_starts_no_ray_and_is_quick(tmp_path):
    """100 finished stages: the driver says so without importing Ray."""
    stages = [toy.steps(f"s{n}", seed=n) for n in range(100)]
    plan, store = toy.plan(tmp_path, *stages), Store(tmp_path)
    with Heartbeat(store, "toy") as beat:
        for stage in stages:
            store.acquire(stage, beat.run)
            attempt = store.begin(stage)
            (store.temporary(stage, attempt) / "a.txt").write_text("a")
            store.publish(stage, attempt, beat.run, started=0.0, seconds=1.0, peak_memory_bytes=1)
            store.release(stage, beat.run)
    (tmp_path / "plan.pickle").write_bytes(pickle.dumps(plan))
    code = (
        "import pickle, sys, time; begun = time.process_time()\n"
        "from launch.execution.run import run\n"
        "assert run(pickle.load(open(sys.argv[1], 'rb'))) == 0\n"
        "assert 'ray' not in sys.modules and 'torch' not in sys.modules\n"
        "print('cpu', time.process_time() - begun)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "plan.pickle"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "100 cached" in done.stdout
    assert float(done.stdout.rsplit("cpu", 1)[1]) < 5


def test_halving_touches_runtime_fields_only():
    for kind in map(stages.load, ("sft", "rl", "cache")):
        name, section = kind.name, kind.section()
        before = {name: section.model_dump(mode="json"), "data": {"max_length": 2048}}
        after = halve(before, kind)
        assert after is not None
        changed = [field for field in before[name] if before[name][field] != after[name][field]]
        assert changed
        for field in changed:
            assert type(section).model_fields[field].json_schema_extra == {"identity": False}
    assert halve({"eval": {}}, stages.load("sft")) is None
    assert "running" not in FINISHED


DRIVER = """
import pickle, sys
from launch.execution.run import run
sys.exit(run(pickle.load(open(sys.argv[1], "rb"))))
"""


def _driver(tmp_path, plan):
    (tmp_path / "plan.pickle").write_bytes(pickle.dumps(plan))
    log = (tmp_path / "driver.log").open("ab")
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "plan.pickle")], stdout=log, stderr=log, start_new_session=True
    )


def _descendants(pid):
    import psutil

    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _attempts(store):
    return len(list(store.root.glob("*/*.logs/attempt-*.request.json")))


def _kill_at_a_moment(driver, store, random_state, victim):
    """Kills a driver, or a process below it, once a random number of further attempts has begun.

    Returns whether something was killed: a driver that has nothing left to do may be gone before.
    """
    attempts = _attempts(store) + random_state.randint(1, 3)
    while driver.poll() is None and _attempts(store) < attempts:
        time.sleep(0.02)
    time.sleep(random_state.random() * 1.0)
    if driver.poll() is not None:
        return False
    runs = [d.run for d in store.list_drivers()]
    if victim == "driver":
        driver.kill()
        driver.wait()
        deadline = time.monotonic() + 60
        while any(attempt_processes(name) for name in runs):
            assert time.monotonic() < deadline, "processes outlive their driver"
            time.sleep(0.1)
        return True
    while driver.poll() is None:  # between two stages there is no process of either kind
        tagged = [pid for name in runs for pid in attempt_processes(name)]
        workers = [p.pid for p in _descendants(driver.pid) if "supervise" in p.name()]
        chosen = tagged if victim == "stage" else workers
        random_state.shuffle(chosen)
        for pid in chosen:
            with contextlib.suppress(ProcessLookupError):  # it has ended since we looked: the next one
                os.kill(pid, signal.SIGKILL)
                return True
        time.sleep(0.02)
    return False


def test_nothing_of_a_lost_worker_lives_beside_the_next_attempt(tmp_path):
    data = toy.steps("data", "prepare", count=40, sleep=0.1)
    plan = toy.plan(tmp_path / "store", data, retries=2)
    store = Store(plan.root)
    driver = _driver(tmp_path, plan)
    try:
        while not (store.logs(data) / "progress.json").exists():
            assert driver.poll() is None, (tmp_path / "driver.log").read_text()
            time.sleep(0.02)
        (run_name,) = [d.run for d in store.list_drivers()]
        left = attempt_processes(f"{run_name}.1")
        for pid in left:  # they cannot notice that the worker is gone
            os.kill(pid, signal.SIGSTOP)
        for process in _descendants(driver.pid):
            if "supervise" in process.name():
                process.kill()
        while _attempts(store) < 2:
            assert driver.poll() is None, (tmp_path / "driver.log").read_text()
            time.sleep(0.02)
        assert left and not set(left) & set(attempt_processes(run_name))
        assert driver.wait(timeout=120) == 0, (tmp_path / "driver.log").read_text()
    finally:
        if driver.poll() is None:
            driver.kill()
            driver.wait()
    assert not list(store.root.glob("*/.tmp-*"))
    assert outcomes(plan, data) == ["lost", "ok"]


def _expected(tmp_path):
    """What the stages of `chain` compute, by calling them in turn in this process."""
    import toy_stages

    plan = chain(tmp_path, count=6)
    folders, found = {}, {}
    for mark, stage in plan.stages.items():
        output, scratch = (
            tmp_path / "expected" / stage.label / "output",
            tmp_path / "expected" / stage.label / "scratch",
        )
        output.mkdir(parents=True)
        scratch.mkdir()
        inputs = {name: folders[given.stage] for name, given in stage.inputs.items()}
        settings = rebuild({"type": stage.settings_type, "values": stage.settings})
        toy_stages.steps(settings, inputs, output, scratch, lambda *_, **__: None)
        folders[mark] = output
        found[stage.label] = (output / "part" / "value.txt").read_bytes()
    return found


def _trial(tmp_path, seed, victims):
    """Kills the victims in turn, in one driver after another, and then lets a last one finish."""
    random_state = random.Random(seed)
    plan = chain(tmp_path / "store", sleep=0.15, count=6, retries=5)
    store = Store(plan.root)
    shared = segments()
    drivers, killed = [_driver(tmp_path, plan)], 0
    try:
        for victim in victims:
            if drivers[-1].poll() is not None:
                drivers.append(_driver(tmp_path, plan))
            killed += _kill_at_a_moment(drivers[-1], store, random_state, victim)
        if drivers[-1].poll() is None:
            assert drivers[-1].wait(timeout=280) == 0, (tmp_path / "driver.log").read_text()
        drivers.append(_driver(tmp_path, plan))
        assert drivers[-1].wait(timeout=280) == 0, (tmp_path / "driver.log").read_text()
    finally:
        for driver in drivers:
            if driver.poll() is None:
                driver.kill()
                driver.wait()
    assert killed, "the trial killed nothing"
    payloads(plan)
    assert not list(store.root.glob("*/.tmp-*")) and not list(store.root.glob("*/.lease-*"))
    assert store.list_drivers() == []
    assert not left_behind(shared)
    values = {s.label: (store.directory(s) / "part" / "value.txt").read_bytes() for s in plan.stages.values()}
    assert values == _expected(tmp_path)


KILLS = [("driver", "driver"), ("stage",), ("worker",), ("stage", "worker", "driver")]
SEEDS = 8  # of which one runs with the ordinary tests, all victims in turn


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("victims", "seed"),
    [
        pytest.param(v, s, id=f"{'-'.join(v)}-{s}", marks=[] if v is KILLS[-1] and s == 1 else [pytest.mark.slow])
        for v in KILLS
        for s in range(SEEDS)
    ],
)
def test_kills_at_seeded_moments_leave_no_process_and_change_no_byte(tmp_path, seed, victims):
    _trial(tmp_path, seed, victims)
