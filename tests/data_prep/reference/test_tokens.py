"""The tokenised training set: streamed, counted in blocks."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from common.registry import ROOT
from data_prep.reference import tokens as module
from data_prep.reference.tokens import Job, Tokens, split_shards

CUTS = [("error", 128), ("truncate_left", 30), ("truncate_right", 30)]


def quiet(*_, **__):
    pass


@pytest.mark.parametrize(("on_long_row", "max_length"), CUTS)
@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_streamed_is_what_the_data_set_gives(world, tmp_path, on_long_row, max_length, mapped):
    dataset = world.dataset(on_long_row=on_long_row, max_length=max_length)
    if mapped:
        from data_prep.chat_table import ChatTable

        dataset.table = ChatTable(dataset.files, tmp_path / "mapped")
    found = Tokens.write(dataset, tmp_path, quiet)
    assert len(found) == len(dataset)
    for index in range(len(dataset)):
        ids, mask = found.chat(index)
        row = dataset[index]
        assert (ids.dtype, mask.dtype) == (np.int32, np.uint8)
        np.testing.assert_array_equal(ids, row["input_ids"])
        np.testing.assert_array_equal(mask, row["loss_mask"])
    assert found.identity == world.dataset(on_long_row=on_long_row, max_length=max_length).identity()


def test_chats_are_read_once(world, tmp_path, monkeypatch):
    from data_prep.chat_table import ChatTable

    dataset, passes = world.dataset(), []
    read = ChatTable.batches
    monkeypatch.setattr(ChatTable, "batches", lambda *given: passes.append(given[1]) or read(*given))
    dataset.table._digest = None
    Tokens.write(dataset, tmp_path, quiet)
    assert passes == [["messages"]]
    passes.clear()
    Tokens.write(dataset, tmp_path, quiet)  # a second attempt tokenises nothing
    assert passes == []


def test_tokens_of_other_chats_are_made_anew(world, tmp_path):
    first = Tokens.write(world.dataset(), tmp_path, quiet)
    second = Tokens.write(world.dataset(on_long_row="truncate_left", max_length=30), tmp_path, quiet)
    assert int(np.diff(second.offsets).max()) == 30 < int(np.diff(first.offsets).max())


@pytest.fixture
def drawn(monkeypatch):
    """Tokens of 200 chats, some longer than a block, some without a supervised token."""
    monkeypatch.setattr(module, "BLOCK_TOKENS", 50)
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 90, 200)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    mask = rng.integers(0, 2, offsets[-1], dtype=np.uint8)
    mask[: offsets[5]] = 0
    return Tokens(rng.integers(0, 1000, offsets[-1], dtype=np.int32), mask, offsets, {})


def test_supervised_tokens_are_counted_in_blocks(drawn):
    expected = [int(drawn.chat(chat)[1].sum()) for chat in range(len(drawn))]
    assert drawn.supervised().tolist() == expected
    assert expected[:5] == [0] * 5


def test_used_ids_are_found_in_blocks(drawn):
    assert drawn.used() == np.unique(drawn.ids).tolist()


def test_sizes_of_files_come_from_the_counts(drawn):
    supervised = drawn.supervised()
    jobs = [*split_shards(supervised, 100), Job("sample.bin", (3, 7, 100), every_position=True)]
    for job in jobs:
        positions = [len(job.positions(drawn.chat(chat)[1])) for chat in job.chats]
        assert job.size(drawn, supervised) == sum(positions)


STREAMED = """
import sys
from pathlib import Path
import numpy as np
from data_prep.reference.tokens import Tokens, split_shards

class Chats:
    def identity(self):
        return {"rows": 1}
    def encoded(self):
        for number in range(20_000):
            yield np.full(2000, number % 1000, np.int32), np.ones(2000, np.uint8)

def anonymous():
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines["RssAnon"].split()[0]) * 1024

before = anonymous()
tokens = Tokens.write(Chats(), Path(sys.argv[1]), lambda *_, **__: None)
written = anonymous()
supervised = tokens.supervised()
jobs = split_shards(supervised, 262_144)
sizes = [job.size(tokens, supervised) for job in jobs]
assert len(tokens.used()) == 1000 and sum(sizes) == len(tokens.ids) == 40_000_000
print(written - before, anonymous() - before)
"""


def test_anonymous_memory_does_not_grow_with_the_tokens(tmp_path):
    """40M tokens are 200 MB of files, once held four times over."""
    command = [sys.executable, "-c", STREAMED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    written, counted = map(int, done.stdout.split())
    assert written < 10e6
    assert counted < 60e6
