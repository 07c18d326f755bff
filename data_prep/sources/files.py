"""One's own files: JSON, Parquet, Arrow and tables, packed or not (docs/data.md)."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from common.errors import ConfigError
from data_prep.sources._readers import PACKED, read_rows
from data_prep.sources.contract import Row, Source

BYTES_PER_ROW = 500  # guesses for `plan`
BYTES_PER_TOKEN = 4.0
CHAT_SHARE = 0.5  # of data.max_length that a chat fills
RESPONSE_SHARE = 0.7  # of a chat's tokens
PACKED_FACTOR = 4  # of what a packed file unpacks to
PROBLEMS = "problems"  # the input that holds a benchmark
GRADER = "grader"  # the column of a benchmark in which a row may name its own


def _file(description: str) -> Any:
    return Field(None, description=description)


class Files(BaseModel):
    """One's own data; the columns are in docs/data.md."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sft_train: str | None = _file("JSONL, JSON, Parquet, Arrow or CSV of chats, also .gz or .zst")
    sft_val: str | None = _file("held-out chats, as for sft_train")
    rl_train: str | None = _file("prompts and answers, as for sft_train")
    rl_val: str | None = _file("held-out prompts and answers")
    benchmarks: dict[str, str] = Field({}, description="name -> file of problems")


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
        path = self._path(section, part)
        if path is None or not path.is_file():
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

    @classmethod
    def _size(cls, section: Files, part: str) -> int | None:
        path = cls._path(section, part)
        if path is None or not path.is_file():
            return None
        return path.stat().st_size * (PACKED_FACTOR if path.suffix in PACKED else 1)

    @staticmethod
    def _path(section: Files, part: str) -> Path | None:
        """The file of `part`, if one is given."""
        if part.startswith("benchmark/"):
            given = section.benchmarks.get(part.removeprefix("benchmark/"))
        else:
            given = getattr(section, f"{part}_train", None)
        return None if given is None else Path(given).expanduser()


@lru_cache(maxsize=256)
def _graders(path: Path, size: int, modified: int) -> tuple[str, ...]:
    """What stands in the column `grader`; a file that cannot be read names none, and is refused when it is prepared.

    size and modified (ns) tell versions of a file apart.
    """
    values: set[Any] = set()
    with contextlib.suppress(ConfigError):
        for row in read_rows(path):
            if isinstance(row.value, dict):
                values.add(row.value.get(GRADER))
    return tuple(sorted(value for value in values if isinstance(value, str)))


SOURCE = FilesSource()
