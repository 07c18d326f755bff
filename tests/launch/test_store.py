from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest
import toy

from launch.store import (
    ATTEMPT_VARIABLE,
    HEARTBEAT,
    Corrupt,
    Driver,
    Full,
    Heartbeat,
    LeaseLost,
    Store,
    StoreError,
    attempt_processes,
    end_processes,
    explain_difference,
    host,
    redact,
    seeds,
    start_time,
    write_json,
)


def published(store, stage, run="run", text="hello"):
    assert store.acquire(stage, run)
    attempt = store.begin(stage)
    folder = store.temporary(stage, attempt)
    (folder / "deep").mkdir()
    (folder / "deep" / "a.txt").write_text(text)
    (folder / "timings.jsonl").write_text(str(time.time()))
    record = store.publish(stage, attempt, run, started=1.0, seconds=2.0, peak_memory_bytes=3)
    store.release(stage, run)
    return record


def signed_on(store, run, **changes):
    """A driver's heartbeat file as another process would write it."""
    store.drivers.mkdir(parents=True, exist_ok=True)
    driver = {"run": run, "recipe": "toy", "host": host(), "pid": os.getpid(), "started": start_time(os.getpid())}
    write_json(store.drivers / f"{run}.json", {**driver, "counter": 0, "temporary": "", **changes})


def test_publishes_with_record_and_finds_it_again(tmp_path):
    store, stage = Store(tmp_path), toy.steps(platform={"env": {"HF_TOKEN": "hf_secret"}})
    assert store.find(stage) is None
    record = published(store, stage)
    assert store.find(stage) == record
    assert store.directory(stage).name == f"toy-{stage.fingerprint[:16]}"
    assert record.payload["deep/a.txt"]["bytes"] == 5
    assert record.comparable().keys() == {"deep/a.txt"}
    assert record.seeds == {"toy.seed": 0}
    assert record.packages["ray"] and record.packages["python"]
    assert (record.seconds, record.peak_memory_bytes) == (2.0, 3)
    assert not store.scratch(stage).exists()
    store.verify(store.directory(stage), stage.fingerprint)


def test_a_url_is_no_store_and_the_error_names_the_replica():
    with pytest.raises(StoreError, match=r"run\.root=s3://bucket/runs: .* set run\.replica=s3://bucket/runs to keep"):
        Store("s3://bucket/runs")


def test_no_secret_reaches_the_record(tmp_path):
    store = Store(tmp_path)
    stage = toy.steps(
        platform={"env": {"HF_TOKEN": "hf_abc"}}, sections={"rl": {"verl": {"trainer.wandb_api_key": "k123"}}}
    )
    published(store, stage)
    text = (store.directory(stage) / "record.json").read_text()
    assert "HF_TOKEN" in text and "hf_abc" not in text and "k123" not in text
    assert redact({"tokens_per_batch": 5, "hf_token": "x", "env": {"A": "b"}}) == {
        "tokens_per_batch": 5,
        "hf_token": "***",
        "env": {"A": "***"},
    }


def test_seeds_are_found_at_any_depth():
    assert seeds({"seed": 3, "data": {"seed": 4, "files": {}}, "sft": {"lr": 1}}) == {"seed": 3, "data.seed": 4}


def test_a_directory_without_a_valid_record_does_not_exist(tmp_path):
    store, stage = Store(tmp_path), toy.steps()
    published(store, stage)
    path = store.directory(stage) / "record.json"
    whole = path.read_text()
    for broken in ("", whole[: len(whole) // 2], "[]", json.dumps({**json.loads(whole), "version": 0})):
        path.write_text(broken)
        assert store.find(stage) is None
    path.unlink()
    record = published(store, stage, text="again")
    assert record.payload["deep/a.txt"]["bytes"] == 5 and (store.directory(stage) / "deep/a.txt").read_text() == "again"


def test_the_whole_fingerprint_is_compared(tmp_path):
    store, stage = Store(tmp_path), toy.steps()
    published(store, stage)
    path = store.directory(stage) / "record.json"
    path.write_text(path.read_text().replace(stage.fingerprint, stage.fingerprint[:16] + "0" * 48))
    with pytest.raises(StoreError, match="belongs to"):
        store.find(stage)


def test_one_changed_byte_is_detected_on_use(tmp_path):
    store, stage = Store(tmp_path), toy.steps()
    published(store, stage)
    path = store.directory(stage) / "deep" / "a.txt"
    before = path.stat()
    path.write_text("hellp")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(Corrupt, match=r"deep/a.txt differs from its sha256.*delete the directory"):
        store.verify(store.directory(stage), stage.fingerprint)
    path.write_text("longer than before")
    with pytest.raises(Corrupt, match="has 18 bytes, its record says 5"):
        store.find(stage)
    path.unlink()
    with pytest.raises(Corrupt, match="is missing"):
        store.find(stage)


def test_selects_checkpoints(tmp_path):
    store = Store(tmp_path)
    for step in (1, 5):
        (tmp_path / "checkpoints" / f"step_{step}").mkdir(parents=True)
    (tmp_path / "checkpoints.json").write_text(json.dumps({"final": 5, "best": 1, "steps": [1, 5]}))
    assert store.select(tmp_path, "") == tmp_path
    assert store.select(tmp_path, "checkpoint:final").name == "step_5"
    assert store.select(tmp_path, "checkpoint:best").name == "step_1"
    assert store.select(tmp_path, "checkpoint:1").name == "step_1"
    with pytest.raises(ValueError, match=r"no checkpoint of step 3: it has \[1, 5\]"):
        store.select(tmp_path, "checkpoint:3")


def test_links_and_empty_outputs_are_refused(tmp_path):
    store, stage = Store(tmp_path), toy.steps()
    store.acquire(stage, "run")
    attempt = store.begin(stage)
    with pytest.raises(ValueError, match="wrote nothing"):
        store.publish(stage, attempt, "run", started=0, seconds=0, peak_memory_bytes=0)
    (store.temporary(stage, attempt) / "link").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="not a plain file"):
        store.publish(stage, attempt, "run", started=0, seconds=0, peak_memory_bytes=0)


def test_a_living_owner_keeps_its_stage_and_a_dead_one_loses_it_at_once(tmp_path):
    store, stage = Store(tmp_path), toy.steps()
    signed_on(store, "first")
    assert store.acquire(stage, "first") and store.acquire(stage, "first")
    assert not store.acquire(stage, "second")
    # the number was given to another process since
    signed_on(store, "first", started=1.0)
    assert store.acquire(stage, "second")
    signed_on(store, "second")
    assert not store.acquire(stage, "third")
    store.release(stage, "third")
    assert store.owner(stage) == "second"
    store.release(stage, "second")
    assert store.acquire(stage, "third")


def test_a_driver_elsewhere_is_dead_when_its_counter_stands_still(tmp_path, monkeypatch):
    store = Store(tmp_path)
    clock = [0.0]
    monkeypatch.setattr("launch.store.time.monotonic", lambda: clock[0])
    signed_on(store, "far", host="elsewhere/1", counter=5)
    assert store.alive("far")
    clock[0] = 59.0
    assert store.alive("far")
    signed_on(store, "far", host="elsewhere/1", counter=6)
    clock[0] = 100.0
    assert store.alive("far")
    clock[0] = 161.0
    assert not store.alive("far")


def test_takeover_kills_what_the_dead_driver_left(tmp_path):
    store, stage = Store(tmp_path), toy.steps()
    signed_on(store, "a" * 32, started=1.0)
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
    end_processes("a" * 31 + "b")
    assert other.wait(5) == -9


def test_a_run_that_lost_its_lease_cannot_publish(tmp_path):
    store, stage = Store(tmp_path), toy.steps()
    assert store.acquire(stage, "slow")
    attempt = store.begin(stage)
    (store.temporary(stage, attempt) / "a.txt").write_text("a")
    other = Store(tmp_path)
    write_json(other._lease(stage), {"run": "other", "stage": stage.fingerprint})
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


@pytest.mark.parametrize("moment", range(1, 8))
def test_a_full_disk_at_any_fsync_publishes_nothing_and_the_next_try_succeeds(tmp_path, monkeypatch, moment):
    store, stage = Store(tmp_path), toy.steps()
    real, calls = os.fsync, [0]

    def fsync(descriptor):
        calls[0] += 1
        if calls[0] == moment:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(Full, match="no space left below"):
        published(store, stage)
    # the last call brings the directory entry of a whole record to the disk; before it there must be none
    assert store.find(stage) is None or moment == 7
    record = published(store, stage)
    assert store.find(stage) == record
    assert not [path.name for path in store.directory(stage).iterdir() if path.name.startswith(".")]


def test_every_attempt_has_a_row_in_the_ledger_and_lost_ones_too(tmp_path):
    store, stage = Store(tmp_path), toy.steps(placement={"gpus_per_node": 2, "nodes": 2})
    store.acquire(stage, "run")
    first = store.begin(stage)
    (store.logs(stage) / f"attempt-{first}.request.json").write_text("{}")
    second = store.begin(stage)
    assert (first, second) == (1, 2)
    store.finish(stage, second, {"outcome": "ok", "message": "", "seconds": 36.0})
    lost, fine = store.costs()
    assert (lost["attempt"], lost["outcome"]) == (1, "lost")
    assert (fine["attempt"], fine["outcome"], fine["devices"]) == (2, "ok", 4)
    assert fine["device_hours"] == pytest.approx(0.04)
    assert (store.logs(stage) / "latest").readlink().name == "attempt-2.log"


def test_gc_keeps_what_records_and_living_drivers_refer_to(tmp_path):
    store = Store(tmp_path)
    done, held, dead = toy.steps("done"), toy.steps("held"), toy.steps("dead")
    published(store, done)
    signed_on(store, "alive")
    signed_on(store, "gone", started=1.0)
    for stage, run in ((held, "alive"), (dead, "gone")):
        store.acquire(stage, run)
        store.begin(stage)
    unfinished = toy.steps("renamed")
    (store.directory(unfinished)).mkdir()
    before = sorted(tmp_path.rglob("*"))
    found = set(store.collect(delete=False))
    assert sorted(tmp_path.rglob("*")) == before
    assert found == {
        store.temporary(dead, 1),
        store.scratch(dead),
        store._lease(dead),
        store.directory(unfinished),
        store.drivers / "gone.json",
    }
    assert set(store.collect(delete=True)) == found
    assert not any(path.exists() for path in found)
    assert store.find(done) is not None
    assert store.temporary(held, 1).exists() and store.scratch(held).exists() and store.owner(held) == "alive"
    assert store.collect(delete=True) == []


def test_explain_names_the_fields_that_differ(tmp_path):
    store = Store(tmp_path)
    one, two = toy.steps("one", count=3), toy.steps("two", count=4)
    published(store, one)
    published(store, two, text="other")
    text = explain_difference(store, f"sft/{store.directory(one).name}", f"sft/{store.directory(two).name}")
    assert "settings.toy.steps: 3 -> 4" in text
    assert "toy.seed" not in text and "payload deep/a.txt" in text and "packages: no difference" in text
    with pytest.raises(StoreError, match="holds no artifact"):
        explain_difference(store, "sft/x", "sft/y")
