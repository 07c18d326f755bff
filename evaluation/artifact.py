"""The `evaluate` artifact: metrics.json and generations/<benchmark>.parquet. Other rooms read it through here."""

import json
import pathlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

VERSION = 1

GENERATIONS = pa.schema(
    [
        ("id", pa.string()),
        ("mode", pa.string()),  # sampled or greedy
        ("sample", pa.int32()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("finish_reason", pa.string()),
        ("tokens", pa.int32()),
        ("seed", pa.int64()),
        ("answer", pa.string()),
        ("grader", pa.string()),
        ("correct", pa.bool_()),
        ("status", pa.string()),
    ]
)


def read_metrics(directory: pathlib.Path) -> dict[str, Any]:
    """metrics.json of an `evaluate` artifact. Raises ValueError for another version of the format.

    {"version", "engine": {...}, "held_out": {metric: estimate, "entropy_histogram": {"edges", "counts"}} or null,
    "benchmarks": {name: {"protocol": {...}, "problems", "grading": {status: count}, "metrics": {metric: estimate}}},
    "tasks": {name: {"protocol": {...}, "problems", "versions", "metrics": {"metric,filter": estimate}}},
    "base_minimum": number or null}
    with estimate = {"value", "low", "high", "n"}: a 95% interval over n problems (or chats).
    """
    path = pathlib.Path(directory) / "metrics.json"
    metrics = json.loads(path.read_text())
    if metrics.get("version") != VERSION:
        raise ValueError(f"{path}: version {metrics.get('version')!r}, this code reads {VERSION}; evaluate again")
    return metrics


def write_metrics(directory: pathlib.Path, metrics: dict[str, Any]) -> None:
    """Write metrics.json, keys sorted."""
    text = json.dumps({"version": VERSION, **metrics}, indent=1, sort_keys=True, allow_nan=False)
    (directory / "metrics.json").write_text(text + "\n")


def read_outcomes(directory: pathlib.Path, benchmark: str) -> dict[str, dict[str, list[bool]]]:
    """Correctness of every response to a benchmark: {mode: {problem id: [by sample]}}."""
    columns = ["id", "mode", "sample", "correct"]
    rows = pq.read_table(pathlib.Path(directory) / "generations" / f"{benchmark}.parquet", columns=columns).to_pylist()
    outcomes: dict[str, dict[str, list[bool]]] = {}
    for row in sorted(rows, key=lambda row: row["sample"]):
        outcomes.setdefault(row["mode"], {}).setdefault(row["id"], []).append(row["correct"])
    return outcomes
