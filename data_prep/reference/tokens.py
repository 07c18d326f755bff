"""The training chats as tokens, and the files that a cache divides them into."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.files import read_json, write_json
from data_prep.reference.layout import Layout, shard_name

HEARTBEAT_SECONDS = 2.0


@dataclass(frozen=True)
class Tokens:
    """The tokenised training set, memory-mapped: ids int32 and mask uint8 (all tokens,), offsets int64 (chats + 1,)."""

    ids: np.ndarray
    mask: np.ndarray
    offsets: np.ndarray
    identity: dict[str, Any]

    @classmethod
    def write(cls, dataset: Any, directory: Path, report: Callable[..., None]) -> Tokens:
        """Tokenise every chat of a ChatDataset into `directory`, or reopen what an earlier attempt wrote."""
        identity, done = dataset.identity(), directory / "tokens.json"
        if read_json(done) != json.loads(json.dumps(identity)):
            done.unlink(missing_ok=True)
            ids, mask, offsets, last = [], [], [0], time.monotonic()
            for index in range(len(dataset)):
                row = dataset[index]
                ids.append(row["input_ids"].numpy().astype(np.int32))
                mask.append(row["loss_mask"].numpy().astype(np.uint8))
                offsets.append(offsets[-1] + len(ids[-1]))
                if time.monotonic() - last > HEARTBEAT_SECONDS:
                    last = time.monotonic()
                    report(0, 1, chats_tokenised=index + 1)
            np.save(directory / "ids.npy", np.concatenate(ids))
            np.save(directory / "mask.npy", np.concatenate(mask))
            np.save(directory / "offsets.npy", np.asarray(offsets, dtype=np.int64))
            write_json(done, identity)
        return cls.open(directory)

    @classmethod
    def open(cls, directory: Path) -> Tokens:
        ids, mask, offsets = (np.load(directory / f"{name}.npy", mmap_mode="r") for name in ("ids", "mask", "offsets"))
        return cls(ids, mask, offsets, read_json(directory / "tokens.json"))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def chat(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """ids int32 and mask uint8 of one chat, (T,) each."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.ids[part], self.mask[part]

    def supervised(self) -> np.ndarray:
        """Supervised tokens of each chat, (chats,) int64."""
        sums = np.concatenate([[0], np.cumsum(self.mask, dtype=np.int64)])
        return sums[self.offsets[1:]] - sums[self.offsets[:-1]]


@dataclass(frozen=True)
class Job:
    """One file to compute: whole chats and, in each, the positions whose predictions are stored.

    Attributes:
        file: name of the shard.
        chats: indices into Tokens.
        every_position: all positions that have a successor, not only those that predict a supervised token.
    """

    file: str
    chats: tuple[int, ...]
    every_position: bool = False

    def positions(self, mask: np.ndarray) -> np.ndarray:
        """Positions of the labels in a chat with this mask; the prediction is made one position earlier."""
        return np.arange(1, len(mask)) if self.every_position else np.flatnonzero(mask)

    def layout(self, whole: Layout) -> Layout:
        """Layout of the file in a cache whose shards have the layout `whole`."""
        return whole.sample() if self.every_position else whole

    def size(self, tokens: Tokens) -> int:
        """Number of stored positions."""
        return sum(len(self.positions(tokens.chat(chat)[1])) for chat in self.chats)


def split_shards(supervised: np.ndarray, tokens_per_shard: int) -> list[Job]:
    """Consecutive chats with at most `tokens_per_shard` supervised tokens together (a longer chat stands alone)."""
    jobs: list[Job] = []
    chats: list[int] = []
    size = 0
    for chat, count in enumerate(supervised.tolist()):
        if chats and size + count > tokens_per_shard:
            jobs.append(Job(shard_name(len(jobs)), tuple(chats)))
            chats, size = [], 0
        chats.append(chat)
        size += count
    return [*jobs, Job(shard_name(len(jobs)), tuple(chats))]


def length_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices grouped by similar length so that length x size of a group stays within the token budget."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while order:
        size = max(1, tokens_per_batch // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]
