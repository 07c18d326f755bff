"""The whole pipeline through the command line, on a world small enough for minutes."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from leftovers import left_behind, segments
from small_world import SMALL

from common.processes import attempt_processes
from launch.store import Store

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.e2e]


def command(root, *overrides):
    return [sys.executable, "-m", "launch", "run", "microworld", *SMALL, f"run.root={root}", *overrides]


def start(root, *overrides):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log_of(root).open("ab") as log:  # not a pipe: what a killed driver started may hold it open
        return subprocess.Popen(command(root, *overrides), cwd=ROOT, env=environment, stdout=log, stderr=log)


def log_of(root):
    return root.with_suffix(".log")


def finish(process, root, seconds):
    try:
        code = process.wait(timeout=seconds)
    finally:
        process.kill()
        process.wait()
    assert code == 0, log_of(root).read_text()[-4000:]


def records(root):
    return {
        path.parent.relative_to(root): json.loads(path.read_text()) for path in sorted(root.glob("*/*/record.json"))
    }


def kinds(root):
    """Kind of stage -> how many artifacts there are."""
    return dict(Counter(address.parts[0] for address in records(root)))


def payloads(root):
    """Artifact -> file -> checksum, without the files that hold wall times."""
    return {
        address: {
            name: entry["sha256"] for name, entry in record["payload"].items() if Path(name).name != "timings.jsonl"
        }
        for address, record in records(root).items()
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_stage_runs_and_a_second_run_recomputes_nothing(tmp_path):
    root = tmp_path / "runs"
    finish(start(root, "objective=sft,lp_sft"), root, 1100)
    assert kinds(root) == {
        "prepare": 7,  # pretraining text, chats, prompts, four benchmarks
        "pretrain": 1,
        "cache": 1,
        "sft": 2,
        "rl": 2,
        "generate": 25,  # the benchmarks and held-out chats, of the base and of two models of either phase
        "measure": 25,
        "analyse": 2,
    }
    (report,) = root.glob("microworld/*/report.md")
    assert "lp_sft" in report.read_text()
    assert report.with_suffix(".html").read_text().count("<svg") >= 1
    before = {path: path.stat().st_mtime_ns for path in root.glob("*/*/record.json")}
    begun = time.monotonic()
    finish(start(root, "objective=sft,lp_sft"), root, 60)
    assert time.monotonic() - begun < 30  # 10 s on a free machine; Ray is not started
    assert {path: path.stat().st_mtime_ns for path in root.glob("*/*/record.json")} == before


VICTIMS = ("driver", "stage", "worker")
TRIALS = 30  # of which three run with the ordinary tests
DETERMINISTIC = ("objective=lp_sft", "rl.enabled=false", "eval.enabled=false")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Payloads of a run that nobody kills: prepare, pretrain, cache, sft."""
    root = tmp_path_factory.mktemp("undisturbed")
    finish(start(root, *DETERMINISTIC), root, 500)
    return payloads(root)


def described(pid):
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return process.status(), process.ppid(), " ".join(process.cmdline())[:80]
    return "gone"


def wait_for_moment(driver, store, moments, stages, seconds):
    """Wait for the start of one of the next stages, and up to `seconds` more."""
    begun = len(list(store.root.glob("*/*.logs/attempt-*.request.json")))
    target = begun + moments.randrange(stages)
    while driver.poll() is None and len(list(store.root.glob("*/*.logs/attempt-*.request.json"))) <= target:
        time.sleep(0.05)
    time.sleep(moments.uniform(0, seconds))


def processes_of(runs):
    return [pid for run in runs for pid in attempt_processes(run)]


def assert_they_end(processes, seconds=60):
    """processes: gives the ids of those that are left."""
    deadline = time.monotonic() + seconds
    while left := processes():
        assert time.monotonic() < deadline, f"processes are left: {[described(pid) for pid in left]}"
        time.sleep(0.1)


def kill_one(driver, store, moments, stages, seconds):
    """Kill -9 the driver, a process of a stage or a Ray worker at a moment of `wait_for_moment`.

    Returns the victim's name, None if the driver ended before.
    """
    wait_for_moment(driver, store, moments, stages, seconds)
    victim = moments.choice(VICTIMS)
    while driver.poll() is None:  # between two stages there is no process of either kind
        runs = [found.run for found in store.list_drivers()]
        if victim == "driver":
            driver.kill()
            driver.wait()
            assert_they_end(lambda runs=runs: processes_of(runs))
            return victim
        if victim == "stage":
            chosen = processes_of(runs)
        else:
            chosen = [p.pid for p in psutil.Process(driver.pid).children(recursive=True) if "supervise" in p.name()]
        moments.shuffle(chosen)
        for pid in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return victim
        time.sleep(0.05)
    return None


def kill_and_finish(root, overrides, moments, kills, limit):
    """One driver after another with a kill each, as `kill_one` with these (stages, seconds); then one to the end.

    limit: seconds of a driver that nobody kills. Nothing but what is published may be left.
    """
    store = Store(root)
    shared = segments()
    killed = []
    for stages, seconds in kills:
        driver = start(root, *overrides, "run.retries=9")
        try:
            killed.append(kill_one(driver, store, moments, stages, seconds))
            if killed[-1] not in ("driver", None) and moments.random() < 0.5:
                driver.wait(timeout=limit)  # the driver itself repeats the stage
        finally:
            driver.kill()
            driver.wait()
        if killed[-1] is None:
            break
    assert any(killed), "the trial killed nothing"
    finish(start(root, *overrides), root, limit)
    assert_nothing_else_is_left(store, shared)


def assert_nothing_else_is_left(store, shared):
    """shared: the shared-memory segments that were there before."""
    root = store.root
    assert not list(root.glob("*/.tmp-*")) and not list(root.glob("*/.lease-*")) and store.list_drivers() == []
    assert not left_behind(shared)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[] if seed < 1 else [pytest.mark.slow]) for seed in range(TRIALS)]
)
def test_kills_at_seeded_moments_leave_what_an_undisturbed_run_leaves(tmp_path, undisturbed, seed):
    root = tmp_path / "runs"
    kill_and_finish(root, DETERMINISTIC, random.Random(seed), [(3, 12)] * 3, 500)
    assert payloads(root) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_drivers_at_once_share_the_work(tmp_path, undisturbed):
    root = tmp_path / "runs"
    drivers = [start(root, *DETERMINISTIC) for _ in range(2)]
    for driver in drivers:
        finish(driver, root, 500)
    assert payloads(root) == undisturbed
    ledger = [json.loads(line) for line in (root / "costs.jsonl").read_text().splitlines()]
    assert sorted(row["fingerprint"] for row in ledger) == sorted(
        record["fingerprint"] for record in records(root).values()
    )


AFTER_SFT = ("objective=sft",)
EVALUATION = ("generate", "measure", "analyse")


@pytest.fixture(scope="module")
def undisturbed_to_the_end(tmp_path_factory):
    """A run that nobody kills, with RL and the evaluations of base, SFT and RL; its store."""
    root = tmp_path_factory.mktemp("to_the_end") / "runs"
    finish(start(root, *AFTER_SFT), root, 800)
    return root


def measured(root, address):
    return json.loads((root / address / "metrics.json").read_text())["metrics"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", range(4))
def test_kills_during_rl_and_evaluation_leave_a_complete_run(tmp_path, undisturbed_to_the_end, seed):
    """What does not depend on RL is equal to the byte; the intervals of what does overlap those of undisturbed runs."""
    root = tmp_path / "runs"
    shutil.copytree(undisturbed_to_the_end, root)
    for kind in ("rl", *EVALUATION, "microworld"):
        shutil.rmtree(root / kind)
    # RL first; then what of RL and of evaluation is left
    kill_and_finish(root, AFTER_SFT, random.Random(100 + seed), [(1, 70), (2, 20)], 700)
    wanted, found = payloads(undisturbed_to_the_end), payloads(root)
    assert found.keys() == wanted.keys()
    after_rl = below(records(root), "rl")
    for address, record in records(root).items():
        if record["fingerprint"] not in after_rl:
            assert found[address] == wanted[address], address
        elif address.parts[0] == "measure" and "held_out" not in address.name:
            for name in ("pass@1", "tokens_mean"):
                mine, theirs = (measured(at, address)[name] for at in (root, undisturbed_to_the_end))
                assert mine["low"] <= theirs["high"] and theirs["low"] <= mine["high"], (name, mine, theirs)


def below(found, kind):
    """Fingerprints of the artifacts of a kind, and of what was made from them."""
    marks = {record["fingerprint"] for record in found.values() if record["kind"] == kind}
    while more := {
        record["fingerprint"]
        for record in found.values()
        if record["fingerprint"] not in marks and marks & {given["stage"] for given in record["inputs"].values()}
    }:
        marks |= more
    return marks


@contextlib.contextmanager
def cluster_of(nodes, monkeypatch):
    """A Ray cluster on this machine: a head, which keeps the driver, and nodes of one logical device. Gives `replace`.

    replace(): kills the youngest node without warning and adds another.
    """
    from ray.cluster_utils import Cluster

    quiet = {"include_dashboard": False, "object_store_memory": 300 * 2**20}
    with tempfile.TemporaryDirectory(prefix="c", dir="/tmp", ignore_cleanup_errors=True) as short:
        cluster = Cluster(True, head_node_args={"num_cpus": 4, "num_gpus": 0, "temp_dir": short, **quiet})
        alive = []

        def add():
            alive.append(cluster.add_node(num_cpus=16, num_gpus=1, object_store_memory=300 * 2**20))

        def replace():
            cluster.remove_node(alive.pop(), allow_graceful=False)
            add()

        try:
            for _ in range(nodes):
                add()
            cluster.wait_for_nodes()
            monkeypatch.setenv("RAY_ADDRESS", cluster.address)
            yield replace
        finally:
            cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(4))
def test_nodes_killed_at_seeded_moments_leave_what_an_undisturbed_run_leaves(tmp_path, undisturbed, monkeypatch, seed):
    moments = random.Random(200 + seed)
    root = tmp_path / "runs"
    store = Store(root)
    shared = segments()
    with cluster_of(1, monkeypatch) as replace:
        driver = start(root, *DETERMINISTIC, "run.retries=9", "platform.gpus_per_node=1")
        for _ in range(3):
            wait_for_moment(driver, store, moments, 2, 12)
            runs = [found.run for found in store.list_drivers()]
            before = processes_of(runs)
            replace()
            assert_they_end(lambda before=before: [pid for pid in before if psutil.pid_exists(pid)])
        finish(driver, root, 600)
    ledger = [json.loads(line) for line in (root / "costs.jsonl").read_text().splitlines()]
    assert [row for row in ledger if row["outcome"] == "lost"], "the trial killed nothing"
    assert payloads(root) == undisturbed
    assert_nothing_else_is_left(store, shared)


# Two Ray nodes of this machine.
SPREAD = [
    "objective=lp_sft",
    "platform.nodes=2",
    "platform.gpus_per_node=1",
    "sft.processes=2",
    "rl.processes=2",
    "eval.replicas=2",
    "run.retries=6",
]


def under_way(root, kind):
    """Whether a stage of this kind works on both nodes and none is done."""
    if kind == "generate":  # its replicas come late; tiny ones generate for a second only
        titles = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
        return sum(title.startswith("ray::_Replica.") for title in titles) == 2
    for path in root.glob(f"{kind}/*.logs/progress.json"):
        if json.loads(path.read_text())["done"] >= 1 and not list(root.glob(f"{kind}/*/record.json")):
            return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_node_lost_in_each_long_stage_is_survived(tmp_path, monkeypatch):
    root = tmp_path / "runs"
    with cluster_of(2, monkeypatch) as replace:
        driver = start(root, *SPREAD)
        for kind in ("sft", "rl", "generate"):
            deadline = time.monotonic() + 900
            while not under_way(root, kind):
                assert driver.poll() is None and time.monotonic() < deadline, log_of(root).read_text()[-4000:]
                time.sleep(0.1)
            replace()
        finish(driver, root, 1200)
    assert kinds(root) == {
        "prepare": 7,
        "pretrain": 1,
        "cache": 1,
        "sft": 1,
        "rl": 1,
        "generate": 15,
        "measure": 15,
        "analyse": 2,
    }
    ledger = [json.loads(line) for line in (root / "costs.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in ledger if row["outcome"] != "ok"} >= {"sft", "rl", "generate"}
