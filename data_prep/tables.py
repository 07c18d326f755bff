"""The layouts of prepared data (docs/data.md) and the writer of its Parquet files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.parquet import streamed
from common.problems import dump
from data_prep.formats.turns import EXTRAS

BATCH_ROWS = 1024

_TURN = [("role", pa.string()), ("content", pa.string())]
_MESSAGES = pa.list_(pa.struct(_TURN))
# What only some rows have is a column, or a field of a turn, only where a row has it.
_EXTRAS = {name: pa.string() for name in EXTRAS} | {"weight": pa.float64(), "train": pa.bool_()}
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
    """Writes rows to a Parquet file in batches of fixed size, so that equal rows give equal bytes.

    A turn's fields beyond role and content, `tools` and `extra_info.grader` are in the file from its first row on if
    any row has them, and in none if none has: where one comes late, the file is begun anew with what is there.
    """

    def __init__(self, path: Path, schema: pa.Schema):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = 0
        self._path, self._plain, self._schema = path, schema, schema
        self._extras: set[str] = set()
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        if extras := _extras(row) - self._extras:
            self._widen(extras)
        self._pending.append(row)
        self.rows += 1
        if len(self._pending) == BATCH_ROWS:
            self._flush()

    def _widen(self, extras: set[str]) -> None:
        self._extras |= extras
        self._schema = _with_extras(self._plain, self._extras)
        if self._writer is None:
            return
        self._writer.close()
        written = self._path.rename(self._path.with_suffix(".narrow"))
        self._writer = self._open()
        for batch in streamed(written).iter_batches(BATCH_ROWS):
            self._write(batch.to_pylist())
        written.unlink()

    def _open(self) -> pq.ParquetWriter:
        return pq.ParquetWriter(self._path, self._schema, compression="zstd")

    def _write(self, rows: list[dict[str, Any]]) -> None:
        writer = self._writer = self._writer or self._open()
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=self._schema))

    def _flush(self) -> None:
        rows = [_cells(row) for row in self._pending] if self._extras else self._pending
        self._write(rows)
        self._pending = []

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None and self._pending:
            self._flush()
        (self._writer or self._open()).close()


def _extras(row: Mapping[str, Any]) -> set[str]:
    found = {"tools"} if row.get("tools") is not None else set()
    if "grader" in row.get("extra_info", ()):
        found.add("grader")
    for turn in row.get("messages") or row["prompt"]:
        if len(turn) > len(_TURN):
            found |= turn.keys() & _EXTRAS.keys()
    return found


def _with_extras(schema: pa.Schema, extras: Iterable[str]) -> pa.Schema:
    extras = set(extras)
    turn = pa.list_(pa.struct([*_TURN, *((name, _EXTRAS[name]) for name in EXTRAS if name in extras)]))
    fields = [field.with_type(turn) if field.type == _MESSAGES else field for field in schema]
    if "grader" in extras:
        fields = [
            field.with_type(pa.struct([*field.type, ("grader", pa.string())])) if field.name == "extra_info" else field
            for field in fields
        ]
    if "tools" in extras:
        fields.append(pa.field("tools", pa.string()))
    return pa.schema(fields)


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """`row` with what is nested and of no fixed shape, calls and tools, as JSON text."""
    column = "messages" if "messages" in row else "prompt"
    turns = [{**turn, "tool_calls": dump(turn["tool_calls"])} if "tool_calls" in turn else turn for turn in row[column]]
    tools = {} if row.get("tools") is None else {"tools": dump(row["tools"])}
    return {**row, column: turns, **tools}


def prompt_row(
    source: str,
    split: str,
    index: int,
    name: str,
    prompt: list,
    answer: str,
    grader: str | None = None,
    tools: list | None = None,
) -> dict[str, Any]:
    """One row of the columns that verl's RL trainer reads; `grader` is the row's own, in place of rl.reward.

    tools: the functions that the prompt shows; verl hands them on to our agent loop.
    """
    own = {} if grader is None else {"grader": grader}
    shown = {} if tools is None else {"tools": tools}
    return {
        "data_source": source,
        "prompt": prompt,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"index": index, "split": split, "id": name, **own},
        **shown,
    }
