"""The artifacts of `generate` and `measure`; other packages read them through here.

generate: generations.parquet (`GENERATIONS`), task.parquet (`TASK_ROWS`) with task.json, or held_out.parquet
(`evaluation.held_out`) with held_out_tokens.parquet and held_out_texts.parquet (`evaluation.token_table`); engine.json.
measure: metrics.json, one measured thing (`Measured`), and outcomes.parquet (`OUTCOMES` of a benchmark, `SCORES` of a
task).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from common.errors import ConfigError
from common.files import write_json

VERSION = 4
TOO_LONG = "prompt_too_long"  # the finish_reason where a prompt left no room for a response

GENERATIONS = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),  # of `common.problems`, in hex
        ("asked", pa.string()),  # digest of the problem's chat, before any template
        ("mode", pa.string()),  # sampled or greedy
        ("sample", pa.int32()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("finish_reason", pa.string()),
        ("tokens", pa.int32()),
        ("limit", pa.int32()),  # tokens that it might have had: max_tokens, or what the context left of it
        ("seed", pa.int64()),
        ("answer", pa.string()),
        ("grader", pa.string()),
    ]
)

OUTCOMES = pa.schema(
    [
        ("id", pa.string()),
        ("mode", pa.string()),
        ("sample", pa.int32()),
        ("asked", pa.string()),
        ("answer", pa.string()),
        ("grader", pa.string()),
        ("correct", pa.bool_()),
        ("status", pa.string()),
    ]
)

# Of a task of lm-evaluation-harness; `scores` is {metric: (sum, count)} as JSON.
SCORES = pa.schema(
    [
        ("task", pa.string()),  # the group's part it belongs to
        ("problem", pa.int64()),
        ("filter", pa.string()),
        ("asked", pa.string()),  # digest of the problem and its answer, before any template
        ("scores", pa.string()),
    ]
)

TASK_ROWS = pa.schema(
    [
        *SCORES,
        ("requests", pa.string()),  # what the model was asked, as JSON
        ("responses", pa.string()),  # texts, or log-likelihoods and whether greedy, as JSON
        ("target", pa.string()),
    ]
)

AT_MOST = "at_most_"  # before the name of an accuracy: what it would be if all that was not graded were right
Directories = Path | Sequence[Path]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Interval(_Strict):
    """A metric: `value` with its 95% interval, from `low` to `high`, over `n` problems (or chats)."""

    value: float
    low: float
    high: float
    n: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")
        return self


class Engine(_Strict):
    """What drew the responses; `reproducible`: whether a second run of the same seed would draw the same ones. `vllm`
    is null where none were drawn."""

    vllm: str | None
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
    def _same_length(self) -> Histogram:
        if len(self.edges) != len(self.shares):
            raise ValueError(f"{len(self.edges)} edges for {len(self.shares)} shares; each bin has its lower edge")
        return self


class BenchmarkCounts(_Strict):
    """Problems, responses (sampled and greedy), and responses by the status of their grading. clamped: problems whose
    responses were held shorter than max_tokens by the context. unanswered: problems whose prompt left no room for a
    response, which count as wrong."""

    problems: int
    responses: int
    clamped: int = 0
    grading: dict[str, int]
    unanswered: int = 0


class TaskCounts(_Strict):
    """Problems over all parts of a group. cut: requests whose beginning the context did not hold; clamped: those whose
    answers it held shorter than the task asks for; ungraded: programs that could not be judged, and count as wrong."""

    problems: int
    cut: int = 0
    clamped: int = 0
    ungraded: int = 0


class _Measured(_Strict):
    """What was measured is an `Interval`; every other number is a plain count, and stands under `counts`, or a
    setting: those of `protocol` and `engine`, the histogram's edges, `base_minimum`."""

    version: Literal[4]
    engine: Engine
    base_minimum: float | None
    name: str
    protocol: dict[str, Any]
    metrics: dict[str, Interval]


class Benchmark(_Measured):
    """`protocol`: the settings it was run with."""

    kind: Literal["benchmark"]
    counts: BenchmarkCounts


class Task(_Measured):
    """A task of lm-evaluation-harness; metrics by "metric,filter", versions by part of the group."""

    kind: Literal["task"]
    counts: TaskCounts
    versions: dict[str, str]


class HeldOut(_Measured):
    """Per token, in nats: entropy, loss, plausible_entropy, kl_from_base; label_drift, the mean change of the written
    token's probability; and the token entropies as a histogram."""

    kind: Literal["held_out"]
    counts: HeldOutCounts
    entropy_histogram: Histogram


Measured = Annotated[Benchmark | Task | HeldOut, Field(discriminator="kind")]
_ADAPTER: TypeAdapter[Any] = TypeAdapter(Measured)


def read_measured(directory: Path) -> dict[str, Any]:
    """metrics.json of one `measure` artifact, laid out as `Benchmark`, `Task` or `HeldOut`.

    Raises ConfigError, naming the file, where there is none, for another version of the format, and for a field that
    is not as it should be.
    """
    path = Path(directory) / "metrics.json"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; name the directory of a measure artifact, <root>/measure/<name>")
    try:
        measured = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); measure again") from None
    if measured.get("version") != VERSION:
        raise ConfigError(f"{path}: version {measured.get('version')!r}, this code reads {VERSION}; measure again")
    return _checked(path, measured)


def write_metrics(directory: Path, measured: dict[str, Any]) -> None:
    """Write metrics.json, keys sorted. Raises ConfigError as `read_measured` does: no metric goes without its interval.

    measured: as `Benchmark`, `Task` or `HeldOut`, without the version.
    """
    path = directory / "metrics.json"
    write_json(path, _checked(path, {"version": VERSION, **measured}))


def read_metrics(directories: Directories) -> dict[str, Any]:
    """All that was measured of one model: {"engine", "held_out", "benchmarks", "tasks", "base_minimum"}.

    directories: its `measure` artifacts. benchmarks and tasks map a name to what was measured, in the order given;
    held_out is one such or None. engine: of the first that drew responses; `reproducible` where all are. Raises
    ConfigError as `read_measured` does, and where two artifacts measure the same.
    """
    found = [(directory, read_measured(directory)) for directory in _several(directories)]
    if not found:
        raise ConfigError("no measure artifact; name at least one")
    merged: dict[str, Any] = {"held_out": None, "benchmarks": {}, "tasks": {}}
    for directory, one in found:
        shown = {key: value for key, value in one.items() if key not in _SHARED}
        if one["kind"] == "held_out":
            known, merged["held_out"] = merged["held_out"], {k: v for k, v in shown.items() if k != "protocol"}
        else:
            group = merged[f"{one['kind']}s"]
            known, group[one["name"]] = group.get(one["name"]), shown
        if known is not None:
            raise ConfigError(f"{directory}: {one['name']!r} was measured twice; name one artifact for each")
    engines = sorted((one["engine"] for _, one in found), key=lambda engine: engine["vllm"] is None)
    reproducible = all(engine["reproducible"] for engine in engines)
    merged["engine"] = {**engines[0], "reproducible": reproducible}
    merged["base_minimum"] = next((one["base_minimum"] for _, one in found if one["base_minimum"] is not None), None)
    return merged


_SHARED = ("version", "engine", "base_minimum", "name", "kind")


def shown(directories: Directories) -> str:
    """The artifacts as a message names them."""
    return ",".join(map(str, _several(directories)))


def _several(directories: Directories) -> list[Path]:
    return [Path(directories)] if isinstance(directories, str | Path) else [Path(one) for one in directories]


def _checked(path: Path, measured: dict[str, Any]) -> dict[str, Any]:
    try:
        _ADAPTER.validate_python(measured)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field, found = ".".join(map(str, first["loc"])), repr(first["input"])
        raise ConfigError(f"{path}: {field}: {first['msg']}, found {found:.80}; measure again") from None
    return measured


def _outcomes(directories: Directories, kind: str, name: str) -> Path:
    """The outcomes.parquet of what is called `name`."""
    for directory in _several(directories):
        measured = read_measured(directory)
        if (measured["kind"], measured["name"]) == (kind, name):
            return directory / "outcomes.parquet"
    raise ConfigError(f"{shown(directories)}: no {kind} {name!r} was measured here")


def read_outcomes(directories: Directories, benchmark: str) -> dict[str, dict[str, list[bool]]]:
    """Correctness of every response to a benchmark: {mode: {problem id: [by sample]}}."""
    columns = ["id", "mode", "sample", "correct"]
    rows = pq.read_table(_outcomes(directories, "benchmark", benchmark), columns=columns).to_pylist()
    outcomes: dict[str, dict[str, list[bool]]] = {}
    for row in sorted(rows, key=lambda row: row["sample"]):
        outcomes.setdefault(row["mode"], {}).setdefault(row["id"], []).append(row["correct"])
    return outcomes


def read_problems(directories: Directories, benchmark: str) -> dict[str, dict[str, str]]:
    """What each problem of a benchmark was, by problem id: {"asked": digest of its chat, "answer", "grader"}."""
    columns = ["id", "asked", "answer", "grader"]
    rows = pq.read_table(_outcomes(directories, "benchmark", benchmark), columns=columns).to_pylist()
    return {row.pop("id"): row for row in rows}


def read_requests(directories: Directories, task: str) -> dict[tuple[str, int], dict[str, str]]:
    """What each problem of a harness task was, by part of the group and number: {"asked": digest of its text and
    answer}."""
    rows = pq.read_table(_outcomes(directories, "task", task), columns=["task", "problem", "asked"]).to_pylist()
    return {(row["task"], row["problem"]): {"asked": row["asked"]} for row in rows}


def read_task_scores(directories: Directories, task: str) -> dict[str, dict[tuple[str, int], tuple[float, float]]]:
    """Of each metric ("acc,none") of a harness task, (sum, count) by part of the group and problem."""
    found: dict[str, dict[tuple[str, int], tuple[float, float]]] = {}
    for row in pq.read_table(_outcomes(directories, "task", task)).to_pylist():
        for metric, (total, count) in json.loads(row["scores"]).items():
            found.setdefault(f"{metric},{row['filter']}", {})[row["task"], row["problem"]] = (total, count)
    return found
