"""Rows of a file as a stream: JSON Lines, a JSON array, Parquet, Arrow, CSV and TSV, plain or as .gz or .zst."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from common.errors import ConfigError
from data_prep.sources.contract import Row, RowError

BATCH_ROWS = 1024
CHUNK_BYTES = 1 << 20
LONGEST_CELL = 1 << 28  # characters of a CSV cell
PACKED = (".gz", ".zst")
SUFFIXES = (".jsonl", ".parquet", ".json", ".arrow", ".csv", ".tsv")
_BETWEEN = re.compile(r"[\s,]*")
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip


def read_rows(path: Path) -> Iterator[Row]:
    """Stream the rows of a file; the value of one that cannot be read is its RowError, positions are bytes of the file.

    A row's place is its line in JSON Lines, else its number, from 1. Text is UTF-8, with or without a byte-order mark;
    a JSON array may also stand in a .jsonl file.

    Raises:
        ConfigError: the file is missing, has another suffix or encoding, or is damaged.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    kind = kind_of(path)
    if kind == ".parquet":
        yield from _parquet(path)
    elif kind == ".arrow":
        yield from _arrow(path)
    else:
        with _opened(path) as (file, raw):
            _check_encoding(path, file)
            read = {".csv": _table, ".tsv": _table}.get(kind, _json)
            yield from read(path, file, raw)


def kind_of(path: Path) -> str:
    """The suffix that says what the file holds. Raises ConfigError for one that is not read."""
    suffixes = path.suffixes
    packed = suffixes[-1:] and suffixes[-1] in PACKED
    kind = (suffixes[-2] if len(suffixes) > 1 else "") if packed else path.suffix
    kind = {".ndjson": ".jsonl"}.get(kind, kind)
    if kind not in SUFFIXES or (packed and kind in (".parquet", ".arrow")):
        raise ConfigError(
            f"{path}: unknown suffix {path.suffix!r}; allowed: {', '.join(SUFFIXES)}, text also packed "
            f"({', '.join(PACKED)})"
        )
    return kind


class _opened:
    """The unpacked bytes of a file, buffered, and the file itself, whose position counts bytes of it."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> tuple[io.BufferedReader, IO[bytes]]:
        self.raw: Any = self.path.open("rb")
        if self.path.suffix == ".gz":
            import gzip

            return io.BufferedReader(gzip.GzipFile(fileobj=self.raw), CHUNK_BYTES), self.raw  # type: ignore[arg-type]
        if self.path.suffix == ".zst":
            import pyarrow as pa

            unpacked = pa.CompressedInputStream(pa.PythonFile(self.raw, "r"), "zstd")
            return io.BufferedReader(unpacked, CHUNK_BYTES), self.raw  # type: ignore[arg-type]
        return self.raw, self.raw

    def __exit__(self, *error: Any) -> None:
        self.raw.close()
        if isinstance(error[1], EOFError | OSError) and self.path.suffix in PACKED:
            raise ConfigError(f"{self.path}: not a readable {self.path.suffix} file ({error[1]})") from error[1]


def _check_encoding(path: Path, file: io.BufferedReader) -> None:
    start = file.peek(4)[:4]
    name = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
    if name is None and len(start) > 1 and 0 in start[:2]:  # text without a mark: every other byte is zero
        name = "UTF-16 or UTF-32"
    if name is not None:
        raise ConfigError(f"{path}: is {name}; save it as UTF-8")
    if start.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))


def _json(path: Path, file: io.BufferedReader, raw: IO[bytes]) -> Iterator[Row]:
    """Lines, or the elements of one array: a file that begins with `[` holds one."""
    while (start := file.peek(1)[:1]) and start.isspace():
        if path.suffix != ".json" and start == b"\n":
            break  # the number of a line counts blank ones
        file.read(1)
    if start == b"[":
        yield from _array(path, file, raw)
    else:
        yield from _lines(path, file, raw)


def _lines(path: Path, file: io.BufferedReader, raw: IO[bytes]) -> Iterator[Row]:
    position = 0
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        position = raw.tell() if path.suffix in PACKED else position + len(line)
        where = f"{path} line {number}"
        yield Row(where, _parsed(where, line), position)


def _parsed(where: str, line: bytes) -> Any:
    """The value of one line, or why it has none."""
    try:
        return json.loads(line.decode(), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        return RowError(
            "not UTF-8", f"{where}: not UTF-8 (byte 0x{line[error.start]:02x} at {error.start}); save as UTF-8"
        )
    except json.JSONDecodeError as error:
        hint = "; the line ends with a comma: one object a line, or a whole array" if line.rstrip()[-1:] == b"," else ""
        return RowError("not JSON", f"{where}: not JSON ({error}){hint}")
    except _Twice as error:
        return RowError("duplicate field", f"{where}: the field {error} is there twice; leave one out")
    except RecursionError:
        return RowError("not JSON", f"{where}: nested too deeply")


class _Twice(Exception):
    """An object has two values under one name, of which JSON's readers keep the last."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(repr(next(name for name in names if names.count(name) > 1)))
    return found


def _array(path: Path, file: io.BufferedReader, raw: IO[bytes]) -> Iterator[Row]:
    """Elements of one JSON array, decoded one at a time."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    bytes_to_text = codecs.getincrementaldecoder("utf-8")()
    text, at, number, ended = "", 0, 0, False
    file.read(1)
    while True:
        at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
        where = f"{path} row {number + 1}"
        if text.startswith("]", at):
            return
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            value, end = (
                RowError("not JSON", f"{where}: not JSON ({error.msg}); the rest of the array is not read"),
                None,
            )
        except _Twice as error:
            raise ConfigError(f"{where}: the field {error} is there twice; leave one out") from None
        if end is not None and (end < len(text) or ended):
            number, at = number + 1, end
            yield Row(where, value, raw.tell())
        elif ended or len(text) - at > LONGEST_CELL:
            yield Row(where, value, raw.tell())
            return
        else:
            # Twice as much each time, so that a long element is not decoded anew for every chunk.
            data = file.read(max(CHUNK_BYTES, len(text) - at))
            ended = not data
            try:
                text, at = text[at:] + bytes_to_text.decode(data, final=ended), 0
            except UnicodeDecodeError as error:
                raise ConfigError(f"{path}: not UTF-8 after row {number} ({error.reason}); save it as UTF-8") from None


def _table(path: Path, file: io.BufferedReader, raw: IO[bytes]) -> Iterator[Row]:
    """Rows of a table with a header; an empty cell is a missing value."""
    csv.field_size_limit(LONGEST_CELL)
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    table = csv.DictReader(text, delimiter="\t" if kind_of(path) == ".tsv" else ",", strict=True)
    try:
        if table.fieldnames and len(set(table.fieldnames)) < len(table.fieldnames):
            raise ConfigError(f"{path}: a column is there twice: {', '.join(table.fieldnames)}")
        for number, row in enumerate(table, 1):
            where = f"{path} row {number}"
            if None in row or None in row.values():
                count = len(table.fieldnames or ())
                yield Row(where, RowError("broken", f"{where}: not {count} cells, as the header has"), raw.tell())
                continue
            yield Row(where, {name: value or None for name, value in row.items()}, raw.tell())
    except csv.Error as error:
        raise ConfigError(f"{path}: not a readable table ({error}, line {table.line_num})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 near line {table.line_num} ({error.reason}); save it as UTF-8") from None
    finally:
        text.detach()


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa

    from common.parquet import streamed

    size = path.stat().st_size
    try:
        file = streamed(path)
        rows, number = file.metadata.num_rows, 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield Row(f"{path} row {number}", row, size * number // rows)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from error


def _arrow(path: Path) -> Iterator[Row]:
    """An Arrow file, or the stream that `datasets` writes under the same suffix."""
    import pyarrow as pa

    number = 0
    try:
        with pa.memory_map(str(path)) as source:
            for batch, position in _record_batches(source):
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    for row in batch.slice(start, BATCH_ROWS).to_pylist():
                        number += 1
                        yield Row(f"{path} row {number}", row, position)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not a readable Arrow file ({' '.join(str(error).split())})") from error


def _record_batches(source: Any) -> Iterator[tuple[Any, int]]:
    """Batches, each with the bytes of the file up to its end, about."""
    import pyarrow as pa

    try:
        file = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        for batch in pa.ipc.open_stream(source):
            yield batch, source.tell()
    else:
        for number in range(file.num_record_batches):
            yield file.get_batch(number), source.size() * (number + 1) // file.num_record_batches
