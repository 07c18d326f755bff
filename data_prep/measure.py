"""How many tokens rows have: each row is tokenised once, by chunks on all cores, one batch ahead of what is written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from common.errors import ConfigError
from data_prep.lengths import count_tokens, encode_chats

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_ROWS = 32
NO_LIMIT = 2**62
Turns = list[dict[str, Any]]


@dataclass(frozen=True)
class Measured:
    """Tokens of one row.

    length: of the whole row. asked: of a chat that is too long, up to its last answer. tokens, responses: what training
    reads of it after truncation, and supervises. refused: why the template cannot render it.
    """

    length: int
    asked: int = 0
    tokens: int = 0
    responses: int = 0
    refused: str = ""


class _Unlimited:
    """The recipe's data section as it is for a row that fits."""

    max_length = NO_LIMIT

    def __init__(self, data: Any):
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


class Measure:
    """Measures rows with a tokenizer whose work on a text runs outside the interpreter's lock.

    Args:
        prompts: the rows are prompts, which end with the answer's header; else chats.
        threads: as many chunks at a time; the cores of this process by default.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: Any, prompts: bool, threads: int | None = None):
        self.tokenizer, self.data, self.prompts = tokenizer, data, prompts
        self._unlimited = _Unlimited(data)
        self._pool = ThreadPoolExecutor(threads or len(os.sched_getaffinity(0)), "measure")

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def start(self, rows: Sequence[Turns]) -> list[Future[list[Measured]]]:
        """Begin to measure `rows`; `finish` waits."""
        chunks = [rows[start : start + CHUNK_ROWS] for start in range(0, len(rows), CHUNK_ROWS)]
        return [self._pool.submit(self._chunk, chunk) for chunk in chunks]

    @staticmethod
    def finish(started: Iterable[Future[list[Measured]]]) -> Iterator[Measured]:
        """One for each row, in order."""
        for future in started:
            yield from future.result()

    def _chunk(self, rows: Sequence[Turns]) -> list[Measured]:
        return [self._one(row) for row in rows]

    def _one(self, row: Turns) -> Measured:
        try:
            return self._prompt(row) if self.prompts else self._chat(row)
        except (ConfigError, TemplateError, TypeError) as error:  # a template may also stumble over a turn
            return Measured(0, refused=" ".join(str(error).split()) or type(error).__name__)

    def _prompt(self, row: Turns) -> Measured:
        return Measured(len(encode_chats(self.tokenizer, [row], prompt=True)[0]))

    def _chat(self, row: Turns) -> Measured:
        counts = count_tokens(self.tokenizer, [row], self._unlimited)
        if counts["tokens"] <= self.data.max_length:
            return Measured(counts["tokens"], 0, counts["tokens"], counts["response_tokens"])
        length = len(encode_chats(self.tokenizer, [row])[0])
        if length > self.data.max_length:
            counts = count_tokens(self.tokenizer, [row], self.data)
        asked = len(encode_chats(self.tokenizer, [row[:-1]], prompt=True)[0])
        return Measured(length, asked, counts["tokens"], counts["response_tokens"])
