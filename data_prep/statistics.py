"""Statistics of the rows of each source, counted while they stream by: lengths, repetitions, what was dropped, overlap.

Of a row 16 bytes are kept. Every figure is exact.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_json, write_text
from data_prep.lengths import Measured

QUANTILES = {"shortest": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "longest": 1.0}
PREFIX = "benchmark_"  # of prepared benchmarks among the inputs
NOTE = (
    "tokens: before truncation, with the chat template. same problem, same row: rows beyond the first that ask the "
    "same, or ask and answer the same, within one source. supervised: response tokens that training predicts."
)


@dataclass
class _Seen:
    """The rows of one source under one name."""

    lengths: Counter[int] = field(default_factory=Counter)
    supervised: int = 0
    problems: array = field(default_factory=lambda: array("Q"))
    rows: array = field(default_factory=lambda: array("Q"))
    dropped: Counter[str] = field(default_factory=Counter)
    overlap: dict[str, int] = field(default_factory=dict)


class RowStatistics:
    """What was read of each source, by its label and the name of the rows (`sft_train`)."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], _Seen] = {}

    def add(self, source: str, name: str, key: bytes, row: Mapping[str, Any], measured: Measured) -> None:
        """A row that is kept; `key` is its problem's."""
        seen = self._of(source, name)
        seen.lengths[measured.longest] += 1
        seen.supervised += sum(measured.supervised)
        seen.problems.append(int.from_bytes(key[:8], "big"))
        answer = row["messages"][-1]["content"] if "messages" in row else row["answer"]
        digest = hashlib.blake2b(key + str(answer).encode(), digest_size=8).digest()
        seen.rows.append(int.from_bytes(digest, "big"))

    def ended(self, source: str, name: str, dropped: Mapping[str, int], overlap: Mapping[str, int]) -> None:
        """All rows were read. dropped: rows by reason. overlap: rows that share a run of words, by benchmark."""
        seen = self._of(source, name)
        seen.dropped.update(dropped)
        seen.overlap = {benchmark.removeprefix(PREFIX): rows for benchmark, rows in overlap.items() if rows}

    def _of(self, source: str, name: str) -> _Seen:
        return self._seen.setdefault((source, name), _Seen())

    def lengths(self) -> dict[str, Any]:
        """The table of rows, tokens, lengths, repetitions and reasons."""
        reasons = sorted({reason for seen in self._seen.values() for reason in seen.dropped})
        columns = ["source", "rows of", "rows", "tokens", "supervised", "mean", *QUANTILES, "same problem", "same row"]
        rows = []
        for (source, name), seen in self._seen.items():
            count, tokens = sum(seen.lengths.values()), sum(length * many for length, many in seen.lengths.items())
            mean = tokens / count if count else None
            repeated = [_repeated(seen.problems), _repeated(seen.rows)]
            found = [source, name, count, tokens, seen.supervised, mean, *quantiles(seen.lengths), *repeated]
            rows.append([*found, *(seen.dropped[reason] for reason in reasons)])
        columns += [f"dropped: {reason}" for reason in reasons]
        return {"title": "Rows of the sources", "columns": columns, "rows": rows, "note": NOTE}

    def contamination(self) -> dict[str, Any] | None:
        """The table of rows that share runs of words with benchmarks; None where none does."""
        rows = [
            [source, name, benchmark, count, sum(seen.lengths.values())]
            for (source, name), seen in self._seen.items()
            for benchmark, count in sorted(seen.overlap.items())
        ]
        if not rows:
            return None
        return {
            "title": "Words shared with benchmarks",
            "columns": ["source", "rows of", "benchmark", "rows with a shared run", "rows"],
            "rows": rows,
            "note": "runs of 13 words (benchmark_overlap in summary.json has examples); the same problem is an error",
        }

    def write(self, output: Path) -> None:
        """statistics.json, contamination.json where there is any, and both as the page statistics.md."""
        tables = {"statistics": self.lengths(), "contamination": self.contamination()}
        kept = {name: table for name, table in tables.items() if table is not None}
        for name, table in kept.items():
            write_json(output / f"{name}.json", table)
        write_text(output / "statistics.md", "\n".join(page(kept.values())))


def quantiles(lengths: Mapping[int, int]) -> list[int | None]:
    """Of lengths with how many rows have each: the least length that the share of `QUANTILES` does not exceed."""
    total, found = sum(lengths.values()), []
    values = np.array(sorted(lengths), np.int64)
    below = np.cumsum([lengths[int(value)] for value in values])
    for share in QUANTILES.values():
        found.append(int(values[np.searchsorted(below, max(1, np.ceil(share * total)))]) if total else None)
    return found


def _repeated(digests: array) -> int:
    return len(digests) - len(np.unique(np.frombuffer(digests, np.uint64))) if digests else 0


def page(tables: Iterable[Mapping[str, Any]]) -> list[str]:
    """Tables as lines of Markdown."""
    lines: list[str] = []
    for table in tables:
        lines += [f"# {table['title']}", "", _line(table["columns"]), _line(["---"] * len(table["columns"]))]
        lines += [*(_line(row) for row in table["rows"]), "", table["note"], ""]
    return lines


def _line(cells: Iterable[Any]) -> str:
    shown = ("" if cell is None else f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells)
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in shown)} |"
