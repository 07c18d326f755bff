"""A damaged reference cache is made again from its whole shards."""

from __future__ import annotations

import json
import shutil

import pytest
import toy

from common.errors import ConfigError
from launch.execution.run import run
from launch.store import Store


@pytest.mark.e2e
@pytest.mark.parametrize("damage", ["flipped", "truncated", "header"])
def test_only_what_is_damaged_is_computed_again(tmp_path, ray_session, capsys, damage):
    cache = toy.stage("cache", "base", "cache", mendable=True)
    first, second = (toy.steps(name, inputs={"base_cache": cache}) for name in ("first", "second"))
    assert run(toy.plan(tmp_path, cache, first)) == 0
    store = Store(tmp_path)
    directory = store.directory(cache)
    before = store.find(cache)
    assert before is not None
    shard = directory / "shard_00001.bin"
    content = shard.read_bytes()
    shard.unlink()  # its pages may be linked elsewhere
    shard.write_bytes(content[:-1] if damage == "truncated" else b"?" + content[1:])
    if damage == "header":
        (directory / "header.json").write_text("{")
    assert run(toy.plan(tmp_path, cache, second)) == 0
    after = store.find(cache)
    assert after is not None
    assert after.comparable() == before.comparable()
    shards = [f"shard_{index:05d}.bin" for index in range(3)]
    expected = shards if damage == "header" else ["shard_00001.bin"]
    assert json.loads((directory / "timings.jsonl").read_text()) == expected
    assert "cache base: damaged; computing" in capsys.readouterr().out


def test_other_artifacts_are_never_taken_apart(tmp_path):
    stage = toy.steps()
    assert Store(tmp_path).take_apart(stage, "a run", lambda *_: "all") is None


def test_what_is_whole_goes_to_the_scratch_directory_and_the_artifact_is_deleted(tmp_path):
    store, stage = Store(tmp_path), toy.steps(mendable=True)

    def mend(artifact, scratch):
        shutil.copyfile(artifact / "deep" / "a.txt", scratch / "a.txt")
        return "timings.jsonl"

    toy.published(store, stage)
    (store.directory(stage) / "timings.jsonl").unlink()
    assert store.find(stage) is not None  # whoever reads it finds the damage and has it mended
    toy.signed_on(store, "other")
    assert store.acquire(stage, "other") and store.take_apart(stage, "run", mend) is None
    store.release(stage, "other")
    assert store.take_apart(stage, "run", mend) == "timings.jsonl"
    assert (store.scratch(stage) / "a.txt").read_text() == "hello"
    assert not store.directory(stage).exists() and store.owner(stage) == "run"


@pytest.mark.parametrize("error", [ConfigError("no header;\n run it"), KeyError("shards"), TypeError("a list")])
def test_an_artifact_of_which_nothing_can_be_kept_is_made_again(tmp_path, error):
    store, stage = Store(tmp_path), toy.steps(mendable=True)

    def mend(artifact, scratch):
        raise error

    toy.published(store, stage)
    assert store.take_apart(stage, "run", mend) == f"all of it ({' '.join(str(error).split())})"
    assert not store.directory(stage).exists()
