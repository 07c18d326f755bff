"""Caches are compared with their checksums once on a node, whatever the number of its ranks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rank_processes import run_script

from common.ports import free_port
from common.verified import announcement
from data_prep.reference import writer
from data_prep.reference.layout import TOKEN_FIELDS, Layout, shard_name

SHARDS = 5


def make_cache(directory: Path) -> Path:
    layout = Layout("compact", 4, 18, 100, tuple(TOKEN_FIELDS))
    output = directory / "cache"
    output.mkdir()
    records = []
    for index in range(SHARDS):
        arrays = layout.allocate(6, 1)
        arrays["offsets"][1], arrays["packed"][:] = 6, np.arange(24, dtype=np.int32).reshape(6, 4) + index
        records.append(writer.write_shard(directory, shard_name(index), layout, arrays))
    writer.publish(directory, output, layout, {"producer": "forward"}, records, None)
    return output


def damage(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()  # a published file shares its inode with the one it was made from
    path.write_bytes(content[:-1] + b"?")


def verified_by(cache: Path, ranks: int) -> list[dict]:
    """What each rank has read and raised."""
    settings = SimpleNamespace(platform=SimpleNamespace(name="cpu", env={}), sft=SimpleNamespace(processes=ranks))
    run_script("verify_ranks.py", cache, settings, ranks=ranks, port=free_port(), timeout=200)
    lines = cache.with_name("log.txt").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.mark.e2e
def test_ranks_share_the_reading_and_refuse_alike(tmp_path):
    cache = make_cache(tmp_path)
    whole = verified_by(cache, 2)
    assert sorted(name for rank in whole for name in rank["read"]) == [shard_name(index) for index in range(SHARDS)]
    assert min(len(rank["read"]) for rank in whole) == SHARDS // 2
    assert [rank["refused"] for rank in whole] == ["", ""]
    for index in (1, 4):  # one in the share of each
        damage(cache / shard_name(index))
    damaged = verified_by(cache, 2)
    assert damaged[0]["refused"] == damaged[1]["refused"]
    assert "checksum differs in shard_00001.bin, shard_00004.bin" in damaged[0]["refused"]
    (cache / shard_name(0)).unlink()
    assert all("shard_00000.bin: missing" in rank["refused"] for rank in verified_by(cache, 2))


@pytest.mark.e2e
def test_what_the_process_above_has_verified_is_not_read_again(tmp_path, monkeypatch):
    cache = make_cache(tmp_path)
    for name, value in announcement([cache]).items():
        monkeypatch.setenv(name, value)
    assert verified_by(cache, 2) == [{"read": [], "refused": ""}] * 2
