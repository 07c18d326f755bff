from __future__ import annotations

import json

import fsspec
import pytest
import toy

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
