from __future__ import annotations

import json
import threading
import time

import fsspec
import pytest
import toy

from launch.execution.copies import Copies
from launch.execution.run import run
from launch.store import Corrupt, Store, StoreError
from launch.store.replica import Replica


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    if request.param == "file":
        return f"file://{tmp_path}/bucket/runs"
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/runs"


def pushed(tmp_path, url):
    """A stage that is published and in the replica, and the replica's file system and root."""
    stage, replica, store = toy.steps(), Replica(url), Store(tmp_path / "here")
    toy.published(store, stage)
    replica.push(store, stage)
    return stage, replica, store, *fsspec.core.url_to_fs(url)


def test_an_artifact_goes_to_the_replica_and_comes_back_byte_for_byte(tmp_path, url):
    stage, replica = toy.steps(), Replica(url)
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    record = toy.published(here, stage)
    assert replica.find(stage) is None and replica.pull(there, stage, "run") is None
    assert replica.push(here, stage) and not replica.push(here, stage)
    assert replica.find(stage) == record
    assert there.acquire(stage, "run")
    assert replica.pull(there, stage, "run") == record
    there.release(stage, "run")
    assert there.find(stage) == record
    there.verify(there.directory(stage), stage.fingerprint)
    assert not list(there.root.glob("*/.tmp-*"))


def test_an_upload_without_its_record_does_not_exist_and_is_repeated(tmp_path, url):
    stage, replica, store, files, root = pushed(tmp_path, url)
    path = f"{root}/{stage.address}/record.json"
    whole = files.cat_file(path)
    files.pipe_file(path, whole[: len(whole) // 2])
    assert replica.find(stage) is None
    files.rm_file(path)
    assert replica.find(stage) is None
    assert replica.push(store, stage) and replica.find(stage) is not None


def test_damage_is_not_sent_and_not_taken(tmp_path, url):
    stage, replica, store, files, root = pushed(tmp_path, url)
    files.pipe_file(f"{root}/{stage.address}/deep/a.txt", b"hellO")
    there = Store(tmp_path / "there")
    there.acquire(stage, "run")
    with pytest.raises(Corrupt, match=r"deep/a\.txt differs from its record; delete"):
        replica.pull(there, stage, "run")
    assert there.find(stage) is None and not list(there.root.glob("*/.tmp-*"))
    other = toy.steps(seed=1)
    toy.published(store, other)
    (store.directory(other) / "deep" / "a.txt").write_text("hellO")
    with pytest.raises(Corrupt):
        replica.push(store, other)
    assert replica.find(other) is None


def test_an_address_of_another_fingerprint_and_an_unknown_protocol_are_refused(tmp_path, url):
    stage, replica, _, files, root = pushed(tmp_path, url)
    path = f"{root}/{stage.address}/record.json"
    files.pipe_file(path, json.dumps(json.loads(files.cat_file(path)) | {"fingerprint": "f" * 64}).encode())
    with pytest.raises(StoreError, match="belongs to ffff"):
        replica.find(stage)
    with pytest.raises(StoreError, match=r"run\.replica=nowhere://x: .*name a URL"):
        Replica("nowhere://x")


class Failing:
    """A file system of fsspec of which every second call fails."""

    def __init__(self, real):
        self.real, self.calls = real, 0

    def __getattr__(self, name):
        def call(*arguments, **named):
            self.calls += 1
            if self.calls % 2:
                raise ConnectionResetError("the network is gone")
            return getattr(self.real, name)(*arguments, **named)

        return call


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr("launch.store.replica.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("launch.execution.copies.FIRST_PAUSE", 0.001)


def test_a_replica_that_fails_half_of_its_calls_gets_and_gives_everything(tmp_path, url, at_once):
    replica, here, there = Replica(url), Store(tmp_path / "here"), Store(tmp_path / "there")
    replica._files = failing = Failing(replica._files)
    stages = [toy.steps(seed=seed) for seed in range(4)]
    copies = Copies(here, replica)
    for stage in stages:
        toy.published(here, stage)
        copies.push(stage)
    copies.finish(lambda: False)
    assert failing.calls > 30 and copies.lines() == [] and copies.busy == 0
    replica = Replica(url)
    back = Copies(there, replica)
    replica._files = Failing(replica._files)
    for stage in stages:
        assert there.acquire(stage, "run")
        back.fetch(stage, "run")
    for stage in stages:
        record = waited(lambda stage=stage: back.fetched(stage))
        assert record == (here.find(stage),) == (there.find(stage),)
        there.verify(there.directory(stage), stage.fingerprint)


def waited(look):
    deadline = time.monotonic() + 30
    while (found := look()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


class Gone:
    def __getattr__(self, name):
        def call(*_, **__):
            raise OSError("no route to host")

        return call


def test_a_replica_that_is_gone_costs_the_copies_and_says_so_once_each(tmp_path, at_once, capsys):
    replica, store = Replica("memory://gone"), Store(tmp_path)
    replica._files = Gone()
    copies = Copies(store, replica)
    stages = [toy.steps(seed=seed) for seed in range(3)]
    for stage in stages:
        toy.published(store, stage)
        copies.push(stage)
    copies.finish(lambda: False)
    text = capsys.readouterr().out
    assert text.count("was not copied to memory://gone: OSError: no route to host") == 3
    other = toy.steps(seed=9)
    store.acquire(other, "run")
    copies = Copies(store, replica)
    copies.fetch(other, "run")
    assert waited(lambda: copies.fetched(other)) == (None,)  # it is made here
    assert [line.partition(":")[0] for line in copies.lines()] == ["sft toy was not taken from memory"]


def test_copying_never_holds_the_loop_and_a_stopped_run_leaves_it(tmp_path, capsys):
    replica, store = Replica("memory://slow"), Store(tmp_path)
    waiting = threading.Event()

    class Slow:
        def __getattr__(self, name):
            def call(*_, **__):
                waiting.wait(30)
                raise FileNotFoundError

            return call

    replica._files = Slow()
    copies = Copies(store, replica)
    begun = time.monotonic()
    for seed in range(3):
        copies.push(toy.steps(seed=seed))
    copies.finish(lambda: True)
    assert time.monotonic() - begun < 5
    assert "3 artifacts were not copied to memory://slow; the next run copies them" in capsys.readouterr().out
    waiting.set()


@pytest.mark.e2e
def test_a_run_fills_the_replica_and_another_store_takes_all_from_it(tmp_path, ray_session, capsys):
    url = f"file://{tmp_path}/bucket"
    first = toy.steps("first")
    second = toy.steps("second", "rl", inputs={"model": first})
    assert run(toy.plan(tmp_path / "one", first, second, replica=url)) == 0
    assert Replica(url).find(first) and Replica(url).find(second)
    assert run(toy.plan(tmp_path / "two", first, second, replica=url)) == 0
    assert "2 cached" in capsys.readouterr().out
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    assert two.costs() == [] and one.find(second) == two.find(second)
