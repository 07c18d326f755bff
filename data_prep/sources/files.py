"""One's own JSON Lines and Parquet files (docs/data.md)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from common.errors import ConfigError
from data_prep.sources.contract import Row, RowError, Source

BATCH_ROWS = 1024
BYTES_PER_ROW = 500  # guesses for `plan`
BYTES_PER_TOKEN = 4.0
CHAT_SHARE = 0.5  # of data.max_length that a chat fills
RESPONSE_SHARE = 0.7  # of a chat's tokens
PROBLEMS = "problems"  # the input that holds a benchmark
GRADER = "grader"  # the column of a benchmark in which a row may name its own


def _file(description: str) -> Any:
    return Field(None, description=description)


class Files(BaseModel):
    """One's own data; the columns are in docs/data.md."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sft_train: str | None = _file("JSONL or Parquet of chats")
    sft_val: str | None = _file("JSONL or Parquet of held-out chats")
    rl_train: str | None = _file("JSONL or Parquet of prompts and answers")
    rl_val: str | None = _file("JSONL or Parquet of held-out prompts and answers")
    benchmarks: dict[str, str] = Field({}, description="name -> JSONL or Parquet of problems")


class FilesSource(Source):
    name = "files"
    section = Files

    def inputs(self, section: Files, part: str) -> dict[str, str]:
        if part.startswith("benchmark/"):
            name = part.removeprefix("benchmark/")
            return {PROBLEMS: self._present(section.benchmarks.get(name), f"benchmarks.{name}")}
        if part not in ("sft", "rl"):
            raise ConfigError(f"data source files has no part {part}; use data.source=microworld for it")
        given = {f"{part}_train": self._present(getattr(section, f"{part}_train"), f"{part}_train")}
        validation = getattr(section, f"{part}_val")
        return given if validation is None else {**given, f"{part}_val": validation}

    @staticmethod
    def _present(path: str | None, field: str) -> str:
        if path is None:
            raise ConfigError(f"data.files.{field} is missing; name a file (docs/data.md)")
        return path

    def parts(self, section: Files, inputs: Mapping[str, Path], seed: int) -> dict[str, Iterator[Row]]:
        rows = {name: read_rows(Path(path)) for name, path in inputs.items() if name != PROBLEMS}
        if PROBLEMS in inputs:
            rows |= {f"benchmark/{name}": read_rows(Path(inputs[PROBLEMS])) for name in section.benchmarks}
        return rows

    def benchmarks(self, section: Files) -> list[str]:
        return list(section.benchmarks)

    def identity(self, section: Files, part: str) -> dict[str, Any]:
        return {}

    def graders(self, section: Files, part: str) -> Collection[str]:
        path = Path(section.benchmarks[part.removeprefix("benchmark/")]).expanduser()
        if not path.is_file():
            return ()
        status = path.stat()
        return _graders(path, status.st_size, status.st_mtime_ns)

    def extent(self, section: Files, inputs: Mapping[str, Path], name: str) -> int:
        path = Path(inputs[PROBLEMS if name.startswith("benchmark/") else name])
        return path.stat().st_size if path.is_file() else 0

    def rough_rows(self, section: Files, part: str) -> float | None:
        size = self._size(section, part)
        return None if size is None else max(1.0, size / BYTES_PER_ROW)

    def rough_tokens(self, section: Files, max_length: int | None = None) -> tuple[float, float, float] | None:
        size = self._size(section, "sft")
        if size is None or max_length is None:
            return None
        tokens = size / BYTES_PER_TOKEN
        return max(1.0, tokens / (CHAT_SHARE * max_length)), tokens, tokens * RESPONSE_SHARE

    @staticmethod
    def _size(section: Files, part: str) -> int | None:
        if part.startswith("benchmark/"):
            given = section.benchmarks.get(part.removeprefix("benchmark/"))
        else:
            given = getattr(section, f"{part}_train", None)
        path = None if given is None else Path(given).expanduser()
        return path.stat().st_size if path is not None and path.is_file() else None


@lru_cache(maxsize=256)
def _graders(path: Path, size: int, modified: int) -> tuple[str, ...]:
    """What stands in the column `grader`; a file that cannot be read names none, and is refused when it is prepared.

    size and modified (ns) tell versions of a file apart.
    """
    values: set[Any] = set()
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        with contextlib.suppress(pa.ArrowException, OSError):
            table = pq.read_table(path, columns=[GRADER]) if GRADER in pq.read_schema(path).names else pa.table({})
            values = {value for column in table.columns for value in column.unique().to_pylist()}
    else:
        with path.open("rb") as file:
            for line in file:
                if GRADER.encode() in line:
                    with contextlib.suppress(ValueError, AttributeError, TypeError):
                        values.add(json.loads(line).get(GRADER))
    return tuple(sorted(value for value in values if isinstance(value, str)))


def read_rows(path: Path) -> Iterator[Row]:
    """Stream a JSONL or Parquet file; the value of a line that is not JSON is its RowError, positions are bytes.

    Raises:
        ConfigError: the file is missing, has another suffix, or is damaged.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    if path.suffix == ".jsonl":
        yield from _json_lines(path)
    elif path.suffix == ".parquet":
        yield from _parquet(path)
    else:
        raise ConfigError(f"{path}: unknown suffix {path.suffix!r}; allowed: .jsonl, .parquet")


def _json_lines(path: Path) -> Iterator[Row]:
    position = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            position += len(line)
            if not line.strip():
                continue
            where = f"{path} line {number}"
            try:
                yield Row(where, json.loads(line), position)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                yield Row(where, RowError("not JSON", f"{where}: not JSON ({error})"), position)


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = path.stat().st_size
    try:
        file = pq.ParquetFile(path)
        rows, number = file.metadata.num_rows, 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield Row(f"{path} row {number}", row, size * number // rows)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from error


SOURCE = FilesSource()
