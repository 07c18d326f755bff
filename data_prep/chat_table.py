"""Prepared chats as Parquet files hold them, read a block at a time: no process holds the text of all of them.

Training reads chats in random order. `mapped` gives it the same rows in a memory-mapped file, whose pages belong to the
file and are shared by all processes of a machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import uuid
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import ConfigError
from common.files import read_json, text_digest, write_json
from common.parquet import streamed
from data_prep.tables import BATCH_ROWS

COLUMNS = ("messages", "tools", "critical_spans", "row_tokens")
RENDERED = ("messages", "tools")  # what decides tokens
BLOCKS_KEPT = 8  # row groups, of 1,024 chats where `prepare` wrote them


class ParquetChats:
    """One Parquet file; its blocks are row groups.

    columns, schema: those of COLUMNS that it has. sizes: chats of each block. digest: of its rows, where known.
    Raises ConfigError for a file without the column messages.
    """

    digest: str | None = None

    def __init__(self, file: str):
        opened = pq.ParquetFile(file)
        self._file, self._metadata = file, opened.metadata
        if "messages" not in opened.schema_arrow.names:
            raise ConfigError(f"{file}: has no column messages; `prepare` writes it")
        self.columns = tuple(name for name in COLUMNS if name in opened.schema_arrow.names)
        self.schema = pa.schema([opened.schema_arrow.field(name) for name in self.columns])
        self.sizes = [self._metadata.row_group(index).num_rows for index in range(self._metadata.num_row_groups)]
        self._kept: dict[int, pa.Table] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def block(self, index: int) -> pa.Table:
        """All columns of one block."""
        found = self._kept.pop(index, None)
        if found is None:
            found = self._open().read_row_group(index, columns=list(self.columns), use_threads=False)
        self._kept[index] = found
        while len(self._kept) > BLOCKS_KEPT:
            del self._kept[next(iter(self._kept))]
        return found

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of the whole file in order, some chats at a time."""
        yield from self._open().iter_batches(BATCH_ROWS, columns=list(columns), use_threads=False)

    def _open(self) -> pq.ParquetFile:
        return streamed(self._file, self._metadata)


class MappedChats:
    """A file that `mapped` has written; its blocks are Arrow's record batches, which no reader copies."""

    def __init__(self, file: Path, digest: str):
        self._file, self.digest = file, digest
        reader = self._open()
        self.columns = tuple(name for name in COLUMNS if name in reader.schema.names)
        self.sizes = [reader.get_batch(index).num_rows for index in range(reader.num_record_batches)]
        self._reader: pa.RecordBatchFileReader | None = reader

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def block(self, index: int) -> pa.RecordBatch:
        """All columns of one block."""
        if self._reader is None:
            self._reader = self._open()
        return self._reader.get_batch(index)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of the whole file in order, some chats at a time."""
        for index in range(len(self.sizes)):
            yield self.block(index).select(list(columns))

    def _open(self) -> pa.RecordBatchFileReader:
        return pa.ipc.open_file(pa.memory_map(str(self._file)))


class ChatTable:
    """Chats of several files, one after another.

    Args:
        files: Parquet files with equal columns.
        directory: where their memory-mapped copies are or will be made; None: the files themselves are read.
        limit: only so many chats, the first ones; below 0: all.

    Raises:
        ConfigError: a file has no column messages, or other columns than the first.
    """

    def __init__(self, files: Sequence[str], directory: Path | None = None, limit: int = -1):
        self._parts = [ParquetChats(file) if directory is None else mapped(file, directory) for file in files]
        self.columns = self._parts[0].columns
        for file, part in zip(files, self._parts, strict=True):
            if part.columns != self.columns:
                raise ConfigError(f"{file}: has the columns {part.columns}, {files[0]} has {self.columns}")
        self._blocks = [(part, index) for part in self._parts for index in range(len(part.sizes))]
        self._first = [0, *accumulate(size for part in self._parts for size in part.sizes)]
        self._chats = self._first[-1] if limit < 0 else min(limit, self._first[-1])
        self._digest = self._parts[0].digest if len(self._parts) == 1 and self._chats == self._first[-1] else None

    def __len__(self) -> int:
        return self._chats

    def chat(self, number: int) -> dict[str, Any]:
        """One chat, all its columns."""
        place = bisect_right(self._first, number) - 1
        part, index = self._blocks[place]
        return part.block(index).slice(number - self._first[place], 1).to_pylist()[0]

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of all chats in order, some at a time."""
        left = self._chats
        for part in self._parts:
            for batch in part.batches(columns):
                if not left:
                    return
                yield batch.slice(0, min(left, batch.num_rows))
                left -= min(left, batch.num_rows)

    def chats(self) -> Iterator[list[dict[str, Any]]]:
        """What decides the tokens of all chats in order, some at a time; after the last the digest is known."""
        rows = hashlib.sha256()
        for batch in self.batches([name for name in RENDERED if name in self.columns]):
            chats = batch.to_pylist()
            _add_rows(rows, chats)
            yield chats
        self._digest = rows.hexdigest()

    def digest(self) -> str:
        """SHA-256 of what decides the tokens, in order; reads all chats if nobody has yet."""
        if self._digest is None:
            for _ in self.chats():
                pass
        assert self._digest is not None
        return self._digest


def mapped(file: str, directory: Path) -> MappedChats:
    """The memory-mapped copy of a Parquet file in `directory`: made by the first process, for which others wait.

    It is made anew where the file has changed since. Raises ConfigError for a file without the column messages.
    """
    directory.mkdir(parents=True, exist_ok=True)
    name = text_digest(str(Path(file).absolute()))[:16]
    target, stamp = directory / f"{name}.arrow", directory / f"{name}.json"
    with (directory / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status = Path(file).stat()
        source = {"file": str(file), "bytes": status.st_size, "modified": status.st_mtime_ns}
        known = read_json(stamp)
        if known is None or known["source"] != source or not _has_size(target, known["bytes"]):
            stamp.unlink(missing_ok=True)
            digest = _write(ParquetChats(file), target)
            known = {"source": source, "bytes": target.stat().st_size, "digest": digest}
            write_json(stamp, known, durable=True)
    return MappedChats(target, known["digest"])


def _write(source: ParquetChats, target: Path) -> str:
    """Copy a file's columns; returns the digest of its rows."""
    rows = hashlib.sha256()
    rendered = [name for name in RENDERED if name in source.columns]
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with pa.ipc.new_file(str(temporary), source.schema) as writer:
            for batch in source.batches(source.columns):
                writer.write_batch(batch)
                _add_rows(rows, batch.select(rendered).to_pylist())
        temporary.rename(target)  # not written in place: where locks do not reach other nodes, one may be reading
    finally:
        temporary.unlink(missing_ok=True)
    return rows.hexdigest()


def _add_rows(rows: Any, chats: list[dict[str, Any]]) -> None:
    for chat in chats:
        rows.update(json.dumps(chat, sort_keys=True, ensure_ascii=False).encode() + b"\n")


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
