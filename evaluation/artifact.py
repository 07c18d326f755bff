"""The `evaluate` artifact: metrics.json, generations/<benchmark>.parquet and tasks/<task>.parquet.

Other rooms read it through here.
"""

import json
import pathlib
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

VERSION = 2

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


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Interval(_Strict):
    """A metric: `value` with its 95% interval, from `low` to `high`, over `n` problems (or chats)."""

    value: float
    low: float
    high: float
    n: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> "Interval":
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")
        return self


class Engine(_Strict):
    """What drew the responses; `reproducible`: whether a second run of the same seed would draw the same ones."""

    vllm: str
    dtype: str
    max_length: int
    reproducible: bool


class HeldOutCounts(_Strict):
    """Of held-out chats: measured, left out for their length, and response tokens of the measured ones."""

    chats: int
    chats_too_long: int
    tokens: int


class Histogram(_Strict):
    """Bin i is from edges[i] up to edges[i + 1], the last one without end; shares[i] is its share of all tokens."""

    edges: list[float]
    shares: list[Interval]

    @model_validator(mode="after")
    def _same_length(self) -> "Histogram":
        if len(self.edges) != len(self.shares):
            raise ValueError(f"{len(self.edges)} edges for {len(self.shares)} shares; each bin has its lower edge")
        return self


class HeldOut(_Strict):
    """Per token, in nats: entropy, loss, kl_from_base; and the token entropies as a histogram."""

    counts: HeldOutCounts
    metrics: dict[str, Interval]
    entropy_histogram: Histogram


class BenchmarkCounts(_Strict):
    """Problems, responses (sampled and greedy), and responses by the status of their grading."""

    problems: int
    responses: int
    grading: dict[str, int]


class Benchmark(_Strict):
    """`protocol`: the settings it was run with."""

    protocol: dict[str, Any]
    counts: BenchmarkCounts
    metrics: dict[str, Interval]


class TaskCounts(_Strict):
    """Problems over all parts of a group."""

    problems: int


class Task(_Strict):
    """A task of lm-evaluation-harness; metrics by "metric,filter", versions by part of the group."""

    protocol: dict[str, Any]
    counts: TaskCounts
    versions: dict[str, str]
    metrics: dict[str, Interval]


class Metrics(_Strict):
    """metrics.json. What was measured is an `Interval`; every other number is a plain count, and stands under a
    `counts`, or a setting: those of `protocol` and `engine`, the histogram's edges, `base_minimum`."""

    version: Literal[2]
    engine: Engine
    held_out: HeldOut | None
    benchmarks: dict[str, Benchmark]
    tasks: dict[str, Task]
    base_minimum: float | None


def read_metrics(directory: pathlib.Path) -> dict[str, Any]:
    """metrics.json of an `evaluate` artifact, laid out as `Metrics`.

    Raises ValueError, naming the file, where there is none, for another version of the format, and for a field that is
    not as it should be.
    """
    path = pathlib.Path(directory) / "metrics.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name the directory of an evaluate artifact, <root>/evaluate/<name>")
    try:
        metrics = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); evaluate again") from None
    if metrics.get("version") != VERSION:
        raise ValueError(f"{path}: version {metrics.get('version')!r}, this code reads {VERSION}; evaluate again")
    return _checked(path, metrics)


def write_metrics(directory: pathlib.Path, metrics: dict[str, Any]) -> None:
    """Write metrics.json, keys sorted. Raises ValueError as `read_metrics` does: no metric goes without its interval.

    metrics: as `Metrics`, without the version.
    """
    path = directory / "metrics.json"
    checked = _checked(path, {"version": VERSION, **metrics})
    path.write_text(json.dumps(checked, indent=1, sort_keys=True, allow_nan=False) + "\n")


def _checked(path: pathlib.Path, metrics: dict[str, Any]) -> dict[str, Any]:
    try:
        Metrics.model_validate(metrics)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field, found = ".".join(map(str, first["loc"])), repr(first["input"])
        raise ValueError(f"{path}: {field}: {first['msg']}, found {found:.80}; evaluate again") from None
    return metrics


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
