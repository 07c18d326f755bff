"""The training chats as tokens, and the files that a cache divides them into."""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.files import read_json, write_json
from data_prep.reference.layout import Layout, shard_name

HEARTBEAT_SECONDS = 2.0
BLOCK_TOKENS = 1 << 22  # looked at together
IDS, MASK, OFFSETS, DONE = "ids.bin", "mask.bin", "offsets.npy", "encoded.json"


@dataclass(frozen=True)
class Tokens:
    """The tokenised training set, memory-mapped: ids int32 and mask uint8 (all tokens,), offsets int64 (chats + 1,)."""

    ids: np.ndarray
    mask: np.ndarray
    offsets: np.ndarray
    identity: dict[str, Any]

    @classmethod
    def write(cls, dataset: Any, directory: Path, report: Callable[..., None]) -> Tokens:
        """Tokenise every chat of a ChatDataset into `directory`, or reopen what an earlier attempt wrote.

        The chats stream through: they are read, tokenised and digested in one pass, and none is kept.
        """
        done = directory / DONE
        known = read_json(done)
        if known is None or known != json.loads(json.dumps(dataset.identity())):
            done.unlink(missing_ok=True)
            offsets, last = array("q", [0]), time.monotonic()
            with (directory / IDS).open("wb") as ids_file, (directory / MASK).open("wb") as mask_file:
                for ids, mask in dataset.encoded():
                    ids_file.write(ids.data)
                    mask_file.write(mask.data)
                    offsets.append(offsets[-1] + len(ids))
                    if time.monotonic() - last > HEARTBEAT_SECONDS:
                        last = time.monotonic()
                        report(0, 1, chats_tokenised=len(offsets) - 1)
            np.save(directory / OFFSETS, np.frombuffer(offsets, np.int64))
            write_json(done, dataset.identity())
        return cls.open(directory)

    @classmethod
    def open(cls, directory: Path) -> Tokens:
        offsets = np.load(directory / OFFSETS)
        ids = np.memmap(directory / IDS, np.int32, "r", shape=(int(offsets[-1]),))
        mask = np.memmap(directory / MASK, np.uint8, "r", shape=(int(offsets[-1]),))
        return cls(ids, mask, offsets, read_json(directory / DONE))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def chat(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """ids int32 and mask uint8 of one chat, (T,) each."""
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.ids[part], self.mask[part]

    def supervised(self) -> np.ndarray:
        """Supervised tokens of each chat, (chats,) int64; some tokens are looked at at a time."""
        counts = np.empty(len(self), np.int64)
        first = 0
        while first < len(self):
            last = int(np.searchsorted(self.offsets, self.offsets[first] + BLOCK_TOKENS, side="right")) - 1
            last = max(first + 1, last)
            places = self.offsets[first : last + 1] - self.offsets[first]
            mask = self.mask[self.offsets[first] : self.offsets[last]]
            sums = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])
            counts[first:last] = np.diff(sums[places])
            first = last
        return counts

    def used(self) -> list[int]:
        """The ids that occur, ascending; some tokens at a time."""
        found: set[int] = set()
        for start in range(0, len(self.ids), BLOCK_TOKENS):
            found.update(np.unique(self.ids[start : start + BLOCK_TOKENS]).tolist())
        return sorted(found)


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

    def size(self, tokens: Tokens, supervised: np.ndarray) -> int:
        """Number of stored positions; `supervised`: what `Tokens.supervised` gave."""
        chats = np.array(self.chats, np.int64)
        lengths = tokens.offsets[chats + 1] - tokens.offsets[chats]
        return int((lengths - 1 if self.every_position else supervised[chats]).sum())


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
