"""The layouts of prepared data (docs/data.md) and the writer of its Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS = 1024

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_CHAT = pa.schema([("id", pa.string()), ("messages", _MESSAGES)])
CHAT_SCHEMA = pa.schema(
    [
        *_CHAT,
        ("critical_spans", pa.list_(pa.list_(pa.int32()))),
        ("row_tokens", pa.list_(pa.int32())),
        ("row_supervised", pa.list_(pa.int32())),
    ]
)
PROMPT_SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", _MESSAGES),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        ("extra_info", pa.struct([("index", pa.int64()), ("split", pa.string()), ("id", pa.string())])),
    ]
)
BENCHMARK_SCHEMA = pa.schema(
    [("id", pa.string()), ("prompt", _MESSAGES), ("answer", pa.string()), ("grader", pa.string())]
)
PRETRAIN_SCHEMA = pa.schema(
    [*_CHAT, ("style", pa.string()), ("input_ids", pa.list_(pa.int32())), ("prompt_length", pa.int32())]
)


class TableWriter:
    """Writes rows to a Parquet file in batches of fixed size, so that equal rows give equal bytes."""

    def __init__(self, path: Path, schema: pa.Schema):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = 0
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._pending: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self._pending.append(row)
        self.rows += 1
        if len(self._pending) == BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_batch(pa.RecordBatch.from_pylist(self._pending, schema=self._schema))
        self._pending.clear()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pending and error[0] is None:
            self._flush()
        self._writer.close()


def prompt_row(source: str, split: str, index: int, name: str, prompt: list, answer: str) -> dict[str, Any]:
    """One row of the columns that verl's RL trainer reads."""
    return {
        "data_source": source,
        "prompt": prompt,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"index": index, "split": split, "id": name},
    }
