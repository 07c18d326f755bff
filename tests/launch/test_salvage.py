"""A damaged reference cache is made again from its whole shards."""

from __future__ import annotations

import json

import pytest
import toy

from launch.run import run
from launch.store import Store


@pytest.mark.e2e
@pytest.mark.parametrize("damage", ["flipped", "truncated", "header"])
def test_only_what_is_damaged_is_computed_again(tmp_path, ray_session, capsys, damage):
    cache = toy.stage("cache", "base", "cache")
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
    assert Store(tmp_path).salvage(stage, "a run") is None
