"""A store on a file system of several nodes: stale handles, late names, lost locks, equal host names, other users."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import stat
import threading
import time
from pathlib import Path

import pytest
import toy

from common.files import read_json, write_json
from launch.status import collect
from launch.store import LeaseLost, Store, StoreError, patience
from launch.store import lock as locks
from launch.store.gc import collect as garbage
from launch.store.leases import PATIENCE, Heartbeat
from launch.store.patience import appears, patiently
from launch.store.records import host

STAGE = ("deep", "a.txt", "timings.jsonl")
FAR = "elsewhere/12345678-0000"


@pytest.fixture
def clock(monkeypatch):
    """A monotonic clock that only `sleep` moves: [seconds]."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


class Flaky:
    """Replaces a call of the file system: one in ten below the store fails with ESTALE."""

    def __init__(self, monkeypatch, seed):
        self.calls = self.failed = 0
        self.random = random.Random(seed)
        for module, name in ((os, "replace"), (os, "rename"), (os, "fsync")):
            monkeypatch.setattr(module, name, self._failing(getattr(module, name)))
        for name in ("read_bytes", "read_text", "stat", "mkdir", "open", "chmod", "unlink"):
            monkeypatch.setattr(Path, name, self._failing(getattr(Path, name)))

    def _failing(self, real):
        def call(*arguments, **named):
            self.calls += 1
            # what the stage writes itself is the stage's affair
            below = "flaky" in str(arguments[0]) and Path(str(arguments[0])).name not in STAGE
            if below and self.random.random() < 0.1:
                self.failed += 1
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(arguments[0]))
            return real(*arguments, **named)

        return call


@pytest.mark.parametrize("seed", range(4))
def test_a_store_whose_handles_go_stale_loses_nothing(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.0001)
    root = tmp_path / "flaky"
    store, stage = Store(root), toy.steps()
    with Heartbeat(store, "toy") as beat:
        with monkeypatch.context() as patched:
            flaky = Flaky(patched, seed)
            for _ in range(20):
                assert patiently(store.owner, stage) in (None, beat.run)
                assert store.alive(beat.run)
                assert [driver.run for driver in store.list_drivers()] == [beat.run]
                assert store.acquire(stage, beat.run)
                store.release(stage, beat.run)
            assert flaky.failed > 2
            for other in range(10):
                toy.published(store, toy.steps(seed=other + 1), beat.run)
        record = toy.published(store, stage, beat.run)
        with monkeypatch.context() as patched:
            flaky = Flaky(patched, seed)
            for _ in range(20):
                assert store.find(stage) == record
                store.verify(store.directory(stage), stage.fingerprint)
            assert flaky.failed > 2


def test_a_stale_handle_is_tried_again_and_another_error_is_not():
    calls = []

    def stale(limit):
        calls.append(1)
        if len(calls) < limit:
            raise OSError(errno.ESTALE, "Stale file handle")
        return "found"

    assert patiently(stale, 3) == "found" and len(calls) == 3
    with pytest.raises(PermissionError):
        patiently(lambda: (_ for _ in ()).throw(PermissionError(errno.EACCES, "no")))


def test_what_another_node_has_just_published_is_waited_for(tmp_path, monkeypatch):
    """Its rename is seen half a second late: an artifact that the driver knows to be there is no damage."""
    store, stage = Store(tmp_path), toy.steps()
    record = toy.published(store, stage)
    hidden = tmp_path / "hidden"
    store.directory(stage).rename(hidden)
    threading.Timer(0.5, lambda: hidden.rename(store.directory(stage))).start()
    assert store.verify(store.directory(stage), stage.fingerprint) == record
    late = tmp_path / "late.json"
    threading.Timer(0.3, lambda: write_json(late, {"a": 1})).start()
    assert appears(late) == {"a": 1}
    with pytest.raises(StoreError, match=r"does not appear on this node within 0\.2 s; is it a shared file system\?"):
        appears(tmp_path / "never.json", 0.2)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"run": 3}', "null"])
def test_a_lease_that_is_not_whole_holds_nothing_and_costs_its_owner_nothing(tmp_path, content):
    store, stage = Store(tmp_path), toy.steps()
    assert store.acquire(stage, "first")
    attempt = store.begin(stage)
    (store.temporary(stage, attempt) / "a.txt").write_text("a")
    store.lease(stage).write_text(content)
    assert store.owner(stage) is None and garbage(store, delete=False)
    store.publish(stage, attempt, "first", started=0, seconds=0, peak_memory_bytes=0)
    assert store.has(stage) and store.acquire(stage, "second")


def test_who_was_taken_over_from_does_not_publish(tmp_path):
    store, stage = Store(tmp_path), toy.steps()
    store.acquire(stage, "first")
    attempt = store.begin(stage)
    (store.temporary(stage, attempt) / "a.txt").write_text("a")
    store.lease(stage).unlink()
    with pytest.raises(LeaseLost):
        store.publish(stage, attempt, "first", started=0, seconds=0, peak_memory_bytes=0)


def unreadable(path):
    path.write_text("{")


def of_another_version(path):
    path.write_text(json.dumps({"run": path.stem, "words": "of another version"}))


@pytest.mark.parametrize("spoil", [unreadable, of_another_version, Path.unlink])
def test_a_driver_that_cannot_be_understood_is_dead_only_once_it_has_stood_still(tmp_path, clock, spoil):
    store, stage = Store(tmp_path), toy.steps()
    toy.signed_on(store, "far", host=FAR)
    assert store.acquire(stage, "far")
    file = store.drivers / "far.json"
    spoil(file)
    other = Store(tmp_path)
    assert not other.acquire(stage, "second")
    clock[0] += PATIENCE - 1
    if file.exists():
        os.utime(file, (1, 1))  # it beats, whatever it writes
        assert not other.acquire(stage, "second")
        clock[0] += PATIENCE - 1
    assert not other.acquire(stage, "second")
    clock[0] += 2
    assert other.acquire(stage, "second")
    assert other.list_drivers() == [] and collect(toy.plan(tmp_path, stage))


def test_two_containers_of_one_name_are_two_hosts(tmp_path, clock, monkeypatch):
    """The other one's process numbers mean nothing here: neither a free nor a taken one says whether it lives."""
    monkeypatch.setattr(os, "readlink", lambda _: "pid:[4026531836]")
    first = host()
    store, stage = Store(tmp_path), toy.steps()
    toy.signed_on(store, "first")
    assert store.acquire(stage, "first")
    monkeypatch.setattr(os, "readlink", lambda _: "pid:[4026532999]")
    assert host() != first and host().split("/")[0] == first.split("/")[0]
    toy.signed_on(store, "second", pid=os.getpid())
    for counter in range(3):  # its process is not to be seen from here, but it beats
        toy.signed_on(store, "first", host=first, pid=2**22 - 1, started=1.0, counter=counter)
        assert not Store(tmp_path).acquire(stage, "second") and not store.acquire(stage, "second")
        clock[0] += PATIENCE * 0.9
    clock[0] += PATIENCE * 0.2  # and one whose number is another process's here is dead when it stops
    toy.signed_on(store, "first", host=first, counter=2)
    assert store.acquire(stage, "second")


@pytest.mark.parametrize("jump", [-1e9, 1e9, 3600.0])
def test_a_clock_that_jumps_kills_nobody_and_costs_nothing(tmp_path, monkeypatch, jump):
    store, stage = Store(tmp_path), toy.steps()
    toy.signed_on(store, "far", host=FAR)
    assert store.acquire(stage, "far") and store.begin(stage) == 1
    (store.logs(stage) / "attempt-1.request.json").write_text("{}")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    os.utime(store.drivers / "far.json", (real() + jump,) * 2)
    os.utime(store.logs(stage) / "attempt-1.request.json", (real() + jump,) * 2)
    other = Store(tmp_path)
    assert not other.acquire(stage, "second") and not other.acquire(stage, "second")
    assert store.begin(stage) == 2
    (lost,) = store.costs()
    assert lost["seconds"] == 0.0 and lost["device_hours"] == 0.0


# --- locks


def test_a_lock_of_a_lost_node_is_left_behind_by_one_of_those_who_wait(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    monkeypatch.setattr(locks, "LOST", 0.4)
    lost = path.open("a")
    fcntl.flock(lost, fcntl.LOCK_EX)  # its node is gone; the file server keeps it
    inside, together, worst = [0], threading.Lock(), [0]

    def work():
        for _ in range(3):
            with locks.locked(path):
                with together:
                    inside[0] += 1
                    worst[0] = max(worst[0], inside[0])
                time.sleep(0.02)
                with together:
                    inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert worst[0] == 1 and time.monotonic() - begun > 0.4
    lost.close()


def test_a_lock_that_changes_hands_is_never_taken_for_lost(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    monkeypatch.setattr(locks, "LOST", 0.5)
    ended = threading.Event()

    def busy():
        while not ended.is_set():
            with locks.locked(path):
                time.sleep(0.05)

    holders = [threading.Thread(target=busy) for _ in range(3)]
    for holder in holders:
        holder.start()
    time.sleep(1.5)
    ended.set()
    for holder in holders:
        holder.join()
    assert not list(tmp_path.glob(".lock-lost-*"))


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with pytest.raises(StoreError, match=r"this file system gives no locks \(No locks available\); mount it with them"):
        Store(tmp_path).acquire(toy.steps(), "run")


# --- gc and other users


def test_gc_frees_the_scratch_of_a_dead_driver_of_another_host_and_spares_a_living_one(tmp_path, clock, monkeypatch):
    store = Store(tmp_path)
    dead, alive = toy.steps("dead"), toy.steps("alive")
    for stage, run in ((dead, "gone"), (alive, "far")):
        toy.signed_on(store, run, host=FAR)
        store.acquire(stage, run)
        store.begin(stage)
    beats = [0]

    def sleep(seconds):
        clock[0] += seconds
        beats[0] += 1
        toy.signed_on(store, "far", host=FAR, counter=beats[0])

    monkeypatch.setattr(time, "sleep", sleep)
    begun = clock[0]
    found = set(garbage(Store(tmp_path), delete=True))
    assert PATIENCE <= clock[0] - begun < 2 * PATIENCE
    assert found == {store.temporary(dead, 1), store.scratch(dead), store.lease(dead), store.drivers / "gone.json"}
    assert not store.scratch(dead).exists() and store.scratch(alive).exists() and store.owner(alive) == "far"
    assert not list(tmp_path.glob("*/.tmp-gone-*"))


def test_published_files_have_the_rights_that_the_umask_leaves(tmp_path, monkeypatch):
    before = os.umask(0o002)
    try:
        store, stage = Store(tmp_path), toy.steps()
        assert store.acquire(stage, "run")
        folder = store.temporary(stage, store.begin(stage))
        (folder / "deep").mkdir(mode=0o700)
        private = folder / "deep" / "weights.bin"
        private.touch(mode=0o600)  # as tempfile makes them
        private.write_bytes(b"x")
        store.publish(stage, 1, "run", started=0, seconds=0, peak_memory_bytes=0)
    finally:
        os.umask(before)

    def rights(path):
        return stat.S_IMODE(path.stat().st_mode)

    directory = store.directory(stage)
    assert rights(directory / "deep" / "weights.bin") == 0o664 and rights(directory / "deep") == 0o775
    assert rights(directory / "record.json") == 0o664 and rights(store.lease(stage)) == 0o664


def forbidden(monkeypatch, name):
    """Lets no file of this name be written or opened for writing."""
    real_open, real_replace = Path.open, os.replace

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def open_(path, mode="r", *arguments, **named):
        if path.name == name and mode != "r":
            refuse(path)
        return real_open(path, mode, *arguments, **named)

    def replace(source, target):
        if Path(target).name == name:
            refuse(target)
        return real_replace(source, target)

    monkeypatch.setattr(Path, "open", open_)
    monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize("name", [".lock", "lease"])
def test_what_this_user_may_not_write_is_named_with_its_owner_and_the_remedy(tmp_path, monkeypatch, name):
    store, stage = Store(tmp_path), toy.steps()
    store.acquire(stage, "other")
    store.release(stage, "other")
    forbidden(monkeypatch, store.lease(stage).name if name == "lease" else name)
    with pytest.raises(StoreError, match=r"cannot be written \(Permission denied\); .* belongs to \w+; .*umask 002"):
        store.acquire(stage, "mine")


def test_the_lease_of_another_user_stands_while_it_beats_and_where_it_cannot_be_read(tmp_path, clock, monkeypatch):
    store, stage = Store(tmp_path), toy.steps()
    toy.signed_on(store, "theirs", user=os.getuid() + 1, pid=2**22 - 1, started=1.0)  # /proc may hide their processes
    assert store.acquire(stage, "theirs")
    assert not store.acquire(stage, "mine")
    clock[0] += PATIENCE - 1
    assert not store.acquire(stage, "mine")
    clock[0] += 2
    lease = store.lease(stage)
    real, access = Path.read_bytes, os.access

    def read_bytes(path):
        if path == lease:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != lease and access(path, mode))
    with pytest.raises(StoreError, match="cannot be written"):
        store.acquire(stage, "mine")
    monkeypatch.undo()
    assert read_json(lease)["run"] == "theirs"
