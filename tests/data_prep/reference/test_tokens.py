"""The tokenised training set: streamed, counted in blocks."""

from __future__ import annotations

import numpy as np
import pytest

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
