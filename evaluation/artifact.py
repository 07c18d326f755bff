"""The `evaluate` artifact: metrics.json, generations/<benchmark>.parquet and tasks/<task>.parquet.

Other rooms read it through here.
"""

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

# Of a task of lm-evaluation-harness; `scores` is {metric: (sum, count)} as JSON.
TASK_ROWS = pa.schema(
    [
        ("task", pa.string()),  # the group's part it belongs to
        ("problem", pa.int64()),
        ("filter", pa.string()),
        ("requests", pa.string()),  # what the model was asked, as JSON
        ("responses", pa.string()),  # texts, or log-likelihoods and whether greedy, as JSON
        ("target", pa.string()),
        ("scores", pa.string()),
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


def read_answers(directory: pathlib.Path, benchmark: str) -> dict[str, str]:
    """The reference answer of each problem of a benchmark, by problem id."""
    path = pathlib.Path(directory) / "generations" / f"{benchmark}.parquet"
    return {row["id"]: row["answer"] for row in pq.read_table(path, columns=["id", "answer"]).to_pylist()}


def read_task_scores(directory: pathlib.Path, task: str) -> dict[str, dict[tuple[str, int], tuple[float, float]]]:
    """Of each metric ("acc,none") of a harness task, (sum, count) by part of the group and problem."""
    rows = pq.read_table(pathlib.Path(directory) / "tasks" / f"{task}.parquet").to_pylist()
    found: dict[str, dict[tuple[str, int], tuple[float, float]]] = {}
    for row in rows:
        for metric, (total, count) in json.loads(row["scores"]).items():
            found.setdefault(f"{metric},{row['filter']}", {})[row["task"], row["problem"]] = (total, count)
    return found
