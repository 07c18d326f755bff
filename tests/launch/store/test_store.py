from __future__ import annotations

import errno
import json
import os

import pytest
import toy

from launch.store import Corrupt, Full, Store, StoreError


def test_publishes_with_record_and_finds_it_again(tmp_path):
    store, stage = Store(tmp_path), toy.steps(platform={"env": {"HF_TOKEN": "hf_secret"}})
    assert store.find(stage) is None
    record = toy.published(store, stage)
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


def test_a_directory_without_a_valid_record_does_not_exist(tmp_path):
    store, stage = Store(tmp_path), toy.steps()
    toy.published(store, stage)
    path = store.directory(stage) / "record.json"
    whole = path.read_text()
    for broken in ("", whole[: len(whole) // 2], "[]", json.dumps({**json.loads(whole), "version": 0})):
        path.write_text(broken)
        assert store.find(stage) is None
    path.unlink()
    record = toy.published(store, stage, text="again")
    assert record.payload["deep/a.txt"]["bytes"] == 5 and (store.directory(stage) / "deep/a.txt").read_text() == "again"


def test_the_whole_fingerprint_is_compared(tmp_path):
    store, stage = Store(tmp_path), toy.steps()
    toy.published(store, stage)
    path = store.directory(stage) / "record.json"
    path.write_text(path.read_text().replace(stage.fingerprint, stage.fingerprint[:16] + "0" * 48))
    with pytest.raises(StoreError, match="belongs to"):
        store.find(stage)


def test_one_changed_byte_is_detected_on_use(tmp_path):
    store, stage = Store(tmp_path), toy.steps()
    toy.published(store, stage)
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
        toy.published(store, stage)
    # the last call brings the directory entry of a whole record to the disk; before it there must be none
    assert store.find(stage) is None or moment == 7
    record = toy.published(store, stage)
    assert store.find(stage) == record
    assert not [path.name for path in store.directory(stage).iterdir() if path.name.startswith(".")]
