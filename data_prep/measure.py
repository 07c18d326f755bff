"""How many tokens rows have: each row is tokenised once, by chunks on all cores, one batch ahead of what is written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from common.errors import ConfigError
from data_prep.lengths import ChatLengths, Measured

CHUNK_ROWS = 32
Started = list[Future[list[Measured | ConfigError]]]


class Measure:
    """Measures rows with a tokenizer whose work on a text runs outside the interpreter's lock.

    Args:
        threads: as many chunks at a time; the cores of this process by default.
    """

    def __init__(self, lengths: ChatLengths, threads: int | None = None):
        self.lengths = lengths
        self._pool = ThreadPoolExecutor(threads or len(os.sched_getaffinity(0)), "measure")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def start(self, rows: Sequence[Mapping[str, Any]]) -> Started:
        """Begin to measure `rows`, all chats or all prompts; `finish` waits."""
        chunks = [rows[start : start + CHUNK_ROWS] for start in range(0, len(rows), CHUNK_ROWS)]
        return [self._pool.submit(self._chunk, chunk) for chunk in chunks]

    @staticmethod
    def finish(started: Started) -> Iterator[Measured | ConfigError]:
        """One for each row, in order; the error in the place of one that the template refuses."""
        for future in started:
            yield from future.result()

    def _chunk(self, rows: Sequence[Mapping[str, Any]]) -> list[Measured | ConfigError]:
        tools = [row.get("tools") for row in rows]
        if "messages" in rows[0]:
            return self.lengths.chats([row["messages"] for row in rows], tools)
        return self.lengths.prompts([row["prompt"] for row in rows], tools)
