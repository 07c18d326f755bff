"""The `measure` stage: grades what was generated and turns it into metrics with intervals; needs no device."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import ConfigError
from common.files import read_json, write_json_lines
from evaluation import graders
from evaluation.artifact import OUTCOMES, SCORES, TOO_LONG, write_metrics
from evaluation.generation.contract import Sample
from evaluation.graders import parse
from evaluation.grading.pool import GradingPool, default_pool
from evaluation.metrics import of_benchmark, of_held_out, of_task
from evaluation.overlap import check_trained_on
from evaluation.protocol import asked, described
from evaluation.sandbox import check_sandbox

Report = Callable[..., None]
MOST_UNGRADED = 0.02  # share of answers without a verdict above which there is no score


def run(settings: Any, inputs: dict[str, Path], output: Path, scratch: Path, report: Report) -> None:
    """Measure what a `generate` stage with the same settings has drawn.

    settings: `eval` of a recipe, and the same one of `benchmark`, `task`, `held_out`. inputs: `generations`, a generate
    artifact; optional `trained_on_sft` and `trained_on_rl`, the prepared data that the model saw. Writes metrics.json,
    outcomes.parquet (both in `evaluation.artifact`) and timings.jsonl. Graders run in a pool of processes with
    time-outs; programs only with eval.run_generated_code. Raises ConfigError for a reference answer that its grader
    cannot read, and for a benchmark's problem among the rows that the model was trained on; RuntimeError, which may be
    tried again, where more than `MOST_UNGRADED` of the answers could not be graded.
    """
    kind, what = asked(settings)
    started = time.monotonic()
    engine = read_json(inputs["generations"] / "engine.json")
    if engine is None:
        raise ConfigError(f"{inputs['generations']}: no engine.json; name the directory of a generate artifact")
    measures = {"benchmark": _benchmark, "task": _task, "held_out": _held_out}
    measured, outcomes, headline = measures[kind](settings.eval, what, inputs, report)
    pq.write_table(outcomes, output / "outcomes.parquet")
    name = "held_out" if kind == "held_out" else what.name
    facts = {"engine": engine, "base_minimum": settings.eval.base_minimum, "kind": kind, "name": name}
    write_metrics(output, {**facts, **measured})
    write_json_lines(output / "timings.jsonl", [{"what": name, "measure": time.monotonic() - started}])
    report(outcomes.num_rows, outcomes.num_rows, **headline)


def _benchmark(evaluation: Any, benchmark: Any, inputs: dict[str, Path], report: Report):
    rows = pq.read_table(inputs["generations"] / "generations.parquet").to_pylist()
    keys = {row["key"]: row["id"] for row in rows}
    check_trained_on(benchmark.name, keys, inputs, lambda: report(0, len(rows)))

    if evaluation.run_generated_code and any(parse(grader)[0].runs_code for grader in {row["grader"] for row in rows}):
        check_sandbox()
    pool = default_pool()
    futures = [
        pool.submit_grade(
            row["response"], row["answer"], row["grader"], run_generated_code=evaluation.run_generated_code
        )
        for row in rows
    ]
    answers: dict[str, str] = {}
    drawn: dict[str, list[Sample]] = {}
    grades: dict[str, dict[str, list[Any]]] = {}
    for done, (row, future) in enumerate(zip(rows, futures, strict=True), start=1):
        try:
            grade = GradingPool.verdict(future.result())
        except ConfigError as error:
            raise ConfigError(f"eval.benchmarks: {benchmark.name!r}: problem {row['id']!r}: {error}") from None
        row["correct"], row["status"] = grade.correct, grade.status
        answers[row["id"]] = row["answer"]
        grades.setdefault(row["mode"], {}).setdefault(row["id"], []).append(grade)
        if row["mode"] == "sampled":
            sample = Sample(row["response"], row["finish_reason"], row["tokens"], row["seed"])
            drawn.setdefault(row["id"], []).append(sample)
        report(done, len(rows))
    statuses = Counter(row["status"] for row in rows)
    _check_graded(benchmark.name, rows, grades, statuses)
    metrics = of_benchmark(
        benchmark,
        list(answers.values()),
        list(drawn.values()),
        {mode: list(found.values()) for mode, found in grades.items()},
        evaluation,
        pool,
        lambda: report(len(rows), len(rows)),
    )
    unanswered = {row["id"] for row in rows if row["finish_reason"] == TOO_LONG}
    used = {graders.parse(row["grader"])[0] for row in rows}
    measured = {
        # Another version of a grader is another measure.
        "protocol": {
            **described(benchmark),
            "seed": evaluation.seed,
            "graders": {one.name: one.version for one in sorted(used, key=lambda one: one.name)},
        },
        "counts": {
            "problems": len(answers),
            "responses": statuses.total(),
            "clamped": len({row["id"] for row in rows if row["limit"] < benchmark.max_tokens}),
            "grading": dict(sorted(statuses.items())),
            **({"unanswered": len(unanswered)} if unanswered else {}),
        },
        "metrics": metrics,
    }
    outcomes = pa.Table.from_pylist([{name: row[name] for name in OUTCOMES.names} for row in rows], OUTCOMES)
    first = metrics["pass@1"]
    headline = {f"{benchmark.name}/pass@1": first["value"], "low": first["low"], "high": first["high"]}
    return measured, outcomes, headline


def _check_graded(name: str, rows: list[dict], grades: dict[str, dict[str, list[Any]]], statuses: Counter) -> None:
    failed = sum(grade.failed for mode in grades.values() for found in mode.values() for grade in found)
    if failed <= MOST_UNGRADED * len(rows):
        return
    ended = ", ".join(f"{status} {count}" for status, count in sorted(statuses.items()))
    first = next(row["id"] for row in rows if grades[row["mode"]][row["id"]][row["sample"]].failed)
    raise RuntimeError(
        f"eval.benchmarks: {name!r}: {failed} of {len(rows)} answers could not be graded (problem {first!r} first; "
        f"{ended}), more than {MOST_UNGRADED:.0%}: that is no score; the answers are kept and can be graded again"
    )


def _task(evaluation: Any, task: Any, inputs: dict[str, Path], report: Report):
    table = pq.read_table(inputs["generations"] / "task.parquet", columns=SCORES.names)
    facts = read_json(inputs["generations"] / "task.json")
    rows = table.to_pylist()
    report(0, 1)
    measured = {
        "protocol": described(task),
        "counts": {"problems": len({(row["task"], row["problem"]) for row in rows}), **facts["counts"]},
        "versions": facts["versions"],
        "metrics": of_task(rows, evaluation.seed, evaluation.resamples),
    }
    return measured, table, {}


def _held_out(evaluation: Any, _: bool, inputs: dict[str, Path], report: Report):
    from evaluation.held_out import SUMS, read

    path = inputs["generations"] / "held_out.parquet"
    found, too_long = read(path)
    report(0, 1)
    measured = {
        "protocol": {"held_out_chats": evaluation.held_out_chats},
        "counts": {"chats": len(found.tokens), "chats_too_long": too_long, "tokens": int(found.tokens.sum())},
        **of_held_out(found, evaluation.seed, evaluation.resamples),
    }
    outcomes = pq.read_table(path, columns=["chat", "tokens", *SUMS])
    return measured, outcomes, {}
