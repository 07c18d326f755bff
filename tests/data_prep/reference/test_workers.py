"""What runs beside what while shards are filled and written."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from data_prep.reference import workers, writer
from data_prep.reference.layout import Layout
from data_prep.reference.tokens import Job, Tokens
from data_prep.reference.workers import Shard, filled_shards, write_shards

LAYOUT = Layout("compact", 2, 18, 50, ("label_logprob",))
MASK = np.array([0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 1, 1], np.uint8)
TOKENS = Tokens(np.arange(12, dtype=np.int32), MASK, np.arange(0, 13, 3), {})
JOBS = [Job("shard_00000.bin", (0, 1)), Job("shard_00001.bin", (2, 3))]


class Producer:
    vocab_size = 50

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def rows(self, chats, positions, top_k, heartbeat):
        for index, kept in enumerate(positions):
            self.events.append(f"batch {chats[index][0] // 3}")
            shape = (len(kept), top_k)
            rows = {"support_ids": torch.full(shape, 7), "support_logprobs": torch.full(shape, -1.0)}
            yield [index], {**rows, "label_logprob": -torch.arange(1.0, len(kept) + 1)} if len(kept) else {}


def test_a_batch_is_stored_when_the_next_is_on_its_way_also_of_the_next_shard(monkeypatch):
    events: list[str] = []
    store = Shard._store

    def note(self, batch, found):
        events.append(f"store {self.ids[batch[0]][0] // 3}")
        store(self, batch, found)

    monkeypatch.setattr(Shard, "_store", note)
    found = {}
    for job, arrays in filled_shards(JOBS, TOKENS, Producer(events), lambda _: LAYOUT):
        events.append(job.file[:11])
        found[job.file] = arrays
    assert events == [
        "batch 0", "batch 1", "store 0", "batch 2", "store 1", "shard_00000", "batch 3", "store 2", "store 3",
        "shard_00001",
    ]  # fmt: skip
    first, second = found.values()
    assert first["label_logprob"].tolist() == [-1, -2]
    assert first["mean_loss"].tolist() == [1.5, 0]  # the second chat has no supervised token
    assert second["label_logprob"].tolist() == [-1, -2, -1, -2]
    assert second["offsets"].tolist() == [0, 2, 4]


def test_a_shard_is_written_while_the_next_is_made(tmp_path, monkeypatch):
    next_is_made = threading.Event()
    write = writer.write_shard

    def wait_and_write(directory, name, *rest):
        assert next_is_made.wait(60) or name == JOBS[1].file
        return write(directory, name, *rest)

    monkeypatch.setattr(workers.writer, "write_shard", wait_and_write)

    def shards():
        for job, arrays in filled_shards(JOBS, TOKENS, Producer([]), lambda _: LAYOUT):
            if job == JOBS[1]:
                next_is_made.set()
            yield job.file, LAYOUT, arrays

    records = list(write_shards(tmp_path, shards()))
    assert [record["file"] for record in records] == [job.file for job in JOBS]
    assert [record["tokens"] for record in records] == [2, 4]
    assert all((tmp_path / record["file"]).stat().st_size == record["bytes"] for record in records)


def test_a_failure_to_write_ends_the_work(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(workers.writer, "write_shard", full)
    filled = filled_shards(JOBS, TOKENS, Producer([]), lambda _: LAYOUT)
    with pytest.raises(OSError, match="No space left"):
        list(write_shards(tmp_path, ((job.file, LAYOUT, arrays) for job, arrays in filled)))
