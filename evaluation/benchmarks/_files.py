"""Rows of a published file: JSONL, JSON, CSV or Parquet, perhaps gzipped."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from common.errors import ConfigError

Row = dict[str, Any]


def read_rows(path: Path, key: str | None) -> Iterator[Row]:
    """Rows of a file in their order; `key` names the entry of a JSON object that holds them.

    Raises ConfigError, naming the file, for another kind of file and for one that is not whole.
    """
    names = [suffix for suffix in path.suffixes if suffix != ".gz"]
    kind = names[-1] if names else ""
    if kind == ".parquet":
        import pyarrow.parquet as pq

        yield from pq.read_table(path).to_pylist()
        return
    with _open(path) as stream:
        if kind == ".csv":
            import csv

            csv.field_size_limit(1 << 30)
            yield from csv.DictReader(stream)
        elif kind == ".jsonl":
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield _parsed(line, f"{path}: line {number}")
        elif kind == ".json":
            content = _parsed(stream.read(), str(path))
            if key is not None:
                if not isinstance(content, dict) or key not in content:
                    raise ConfigError(f"{path}: no entry {key!r}")
                content = content[key]
            yield from content
        else:
            raise ConfigError(f"{path}: not .jsonl, .json, .csv or .parquet, with or without .gz")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON ({error}); download it again") from None


def _open(path: Path) -> TextIO:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
