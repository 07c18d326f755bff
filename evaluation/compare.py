"""Paired comparison of what was measured of two models: same problems."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from common.errors import ConfigError
from evaluation.artifact import (
    Directories,
    read_metrics,
    read_outcomes,
    read_problems,
    read_requests,
    read_task_scores,
    shown,
)
from evaluation.statistics import FLIPS, class_weights, holm, paired, pass_at_k

NOT_REPRODUCIBLE = (
    "Responses were drawn on a GPU without vLLM's batch invariance (VLLM_BATCH_INVARIANT=1): the intervals are over "
    "problems, and a second run of the same seed can draw other responses."
)


def compare(
    a: Directories, b: Directories, *, seed: int = 0, resamples: int = FLIPS, confidence: float = 0.95
) -> list[dict[str, Any]]:
    """Differences b - a of every shared benchmark and metric: greedy, balanced accuracy, pass@1, and each pass@k that
    both hold; of every shared harness task its first of `HEADLINES`, or else of its metrics.

    a, b: `measure` artifacts of one model each. One row each: benchmark, metric, a and b with the 95% interval of each
    (a_low, a_high, b_low, b_high, as in their metrics.json), difference, low, high (at `confidence`), p_value,
    detectable (None: no difference could be) and p_holm (adjusted over all rows), as `statistics.paired` finds them, n,
    reproducible (whether a second evaluation of both would draw the same responses). resamples: draws of signs where
    the models differ on too many problems to enumerate.
    Raises ConfigError if nothing is shared or something shared differs in its problems (what was asked, reference
    answers, graders) or protocol.
    """
    metrics_a, metrics_b = read_metrics(a), read_metrics(b)
    rows: list[dict[str, Any]] = []
    reproducible = all(metrics["engine"]["reproducible"] for metrics in (metrics_a, metrics_b))

    def add(name: str, metric: str, kind: str, scores: Sequence[Mapping[Any, float]], weights=None) -> None:
        ids = sorted(scores[0])
        sides = [np.array([one[i] for i in ids], dtype=np.float64) for one in scores]
        weights = None if weights is None else [weights[i] for i in ids]
        found = paired(*sides, seed=seed, weights=weights, flips=resamples, confidence=confidence)
        values = {}
        for side, metrics in (("a", metrics_a), ("b", metrics_b)):
            estimate = metrics[kind][name]["metrics"][metric]
            values |= {side: estimate["value"], f"{side}_low": estimate["low"], f"{side}_high": estimate["high"]}
        rows.append(
            {
                "benchmark": name,
                "metric": metric,
                **values,
                "difference": found.difference,
                "low": found.low,
                "high": found.high,
                "p_value": found.p,
                "detectable": found.detectable if math.isfinite(found.detectable) else None,
                "n": len(ids),
                "reproducible": reproducible,
            }
        )

    for name in _shared(metrics_a, metrics_b, "benchmarks"):
        outcomes = read_outcomes(a, name), read_outcomes(b, name)
        problems = read_problems(a, name)
        _same_problems(name, problems, read_problems(b, name))
        for metric in metrics_a["benchmarks"][name]["metrics"]:
            if metric not in metrics_b["benchmarks"][name]["metrics"]:
                continue
            if metric == "balanced_accuracy":
                of_class = class_weights([one["answer"] for one in problems.values()])
                weights = dict(zip(problems, of_class, strict=True))
                add(name, metric, "benchmarks", [_scores(one, "pass@1") for one in outcomes], weights)
            elif metric == "greedy" or re.fullmatch(r"pass@\d+", metric):
                add(name, metric, "benchmarks", [_scores(one, metric) for one in outcomes])
    for name in _shared(metrics_a, metrics_b, "tasks"):
        metric = _headline(metrics_a["tasks"][name]) or min(metrics_a["tasks"][name]["metrics"])
        _same_problems(name, read_requests(a, name), read_requests(b, name))
        sums = [read_task_scores(one, name)[metric] for one in (a, b)]
        counts = [{problem: count for problem, (_, count) in one.items()} for one in sums]
        if counts[0] != counts[1]:
            raise ConfigError(f"compare: {name!r}: {metric} counts other parts of the problems; evaluate alike")
        scores = [{problem: total / count for problem, (total, count) in one.items()} for one in sums]
        add(name, metric, "tasks", scores, counts[0])
    if not rows:
        names = [sorted({**metrics["benchmarks"], **metrics["tasks"]}) for metrics in (metrics_a, metrics_b)]
        raise ConfigError(f"compare: no shared benchmark; {shown(a)} has {names[0]}, {shown(b)} has {names[1]}")
    for row, adjusted in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
    return rows


def _shared(a: Mapping[str, Any], b: Mapping[str, Any], kind: str) -> list[str]:
    shared = [name for name in a[kind] if name in b[kind]]
    for name in shared:
        protocols = a[kind][name]["protocol"], b[kind][name]["protocol"]
        different = sorted(key for key in protocols[0].keys() | protocols[1].keys() if _differs(*protocols, key))
        if different:
            raise ConfigError(f"compare: the protocols of {name!r} differ in {', '.join(different)}; evaluate alike")
    return shared


def _same_problems(name: str, a: Mapping[Any, Mapping[str, str]], b: Mapping[Any, Mapping[str, str]]) -> None:
    if a.keys() != b.keys():
        raise ConfigError(f"compare: {name!r} was evaluated on different problems; use one prepared data set")
    for problem, was in a.items():
        different = sorted(field for field, value in was.items() if b[problem][field] != value)
        if different:
            raise ConfigError(
                f"compare: {name!r}: problem {problem!r} is another one under the same id: {', '.join(different)} "
                f"differ; use one prepared data set"
            )


def average(
    artifact: Directories,
    base: Directories | None = None,
    minimum: float | None = None,
    without: Collection[str] = (),
) -> dict[str, Any]:
    """Mean score over a model's benchmarks (pass@1) and tasks (their first accuracy), with what was left out.

    artifact: `measure` artifacts of one model. without: names that do not count, such as the target when general
    ability is asked for.

    minimum: leave out every benchmark and task on which `base`, the artifacts of the model before fine-tuning, is below
    it (TALR, appendix C.3: 0.5); None takes the artifacts' own `eval.base_minimum`. Returns {"value",
    "low", "high", "included": [names], "excluded": [names], "reproducible": whether a second evaluation would draw the
    same responses}; the interval treats benchmarks as independent. Raises ConfigError if a minimum is asked for without
    `base`, or nothing is left.
    """
    metrics = read_metrics(artifact)
    minimum = metrics["base_minimum"] if minimum is None else minimum
    if minimum is not None and base is None:
        raise ConfigError(f"average: the minimum {minimum} is the base model's; give its artifact with --base")
    before = None if base is None else read_metrics(base)
    unknown = sorted(set(without) - {*metrics["benchmarks"], *metrics["tasks"]})
    if unknown:
        present = ", ".join([*metrics["benchmarks"], *metrics["tasks"]])
        raise ConfigError(f"average: --without {', '.join(unknown)} is not in {shown(artifact)}; present: {present}")
    return {**average_of(metrics, before, minimum, without), "reproducible": metrics["engine"]["reproducible"]}


def average_of(
    metrics: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    minimum: float | None,
    without: Collection[str] = (),
) -> dict[str, Any]:
    """`average` of metrics already read; `before` are the base model's, `without` names to leave out unseen."""
    scores = {name: score for name, score in headlines(metrics).items() if name not in without}
    nameless = sorted(set(metrics["tasks"]) - set(scores) - set(without))
    if nameless:
        raise ConfigError(
            f"average: task {nameless[0]!r} has none of {', '.join(HEADLINES)}; leave it out: --without {nameless[0]}"
        )
    bases = headlines(before) if minimum is not None and before is not None else {}
    lacking = sorted(set(scores) - set(bases)) if minimum is not None else []
    if lacking:
        raise ConfigError(f"average: the base model has no {', '.join(lacking)}; evaluate it alike")
    excluded = [name for name in scores if minimum is not None and bases[name]["value"] < minimum]
    included = [name for name in scores if name not in excluded]
    if not included:
        low = f"the base model is below {minimum} on {', '.join(scores)}" if scores else "every name is left out"
        raise ConfigError(f"average: nothing to average; {low}")
    kept = [scores[name] for name in included]
    value = sum(one["value"] for one in kept) / len(kept)
    below = sum((one["value"] - one["low"]) ** 2 for one in kept) ** 0.5 / len(kept)
    above = sum((one["high"] - one["value"]) ** 2 for one in kept) ** 0.5 / len(kept)
    return {"value": value, "low": value - below, "high": value + above, "included": included, "excluded": excluded}


# By preference; the harness' tasks report several. IFEval and GSM8K: those of TALR's table 2.
HEADLINES = (
    "inst_level_strict_acc,none",
    "exact_match,flexible-extract",
    "pass@1,create_test",
    "pass_at_1,none",
    "acc,none",
    "exact_match,none",
)


def headlines(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By name the one score of every benchmark (balanced accuracy where asked for, else pass@1) and task, as estimates.

    metrics: of `read_metrics`. A task's score is the first of `HEADLINES` that it has; one that has none is left out.
    """
    found = {
        name: one["metrics"].get("balanced_accuracy", one["metrics"]["pass@1"])
        for name, one in metrics["benchmarks"].items()
    }
    for name, task in metrics["tasks"].items():
        metric = _headline(task)
        if metric is not None:
            found[name] = task["metrics"][metric]
    return found


def _headline(task: Mapping[str, Any]) -> str | None:
    return next((metric for metric in HEADLINES if metric in task["metrics"]), None)


def _differs(a: dict, b: dict, key: str) -> bool:
    # The sampling seed may differ: other draws of the same protocol are comparable.
    return key != "seed" and a.get(key) != b.get(key)


def _scores(outcomes: dict[str, dict[str, list[bool]]], metric: str) -> dict[str, float]:
    if metric == "greedy":
        return {problem: float(correct[0]) for problem, correct in outcomes["greedy"].items()}
    k = int(metric.removeprefix("pass@"))
    return {problem: pass_at_k(len(correct), sum(correct), k) for problem, correct in outcomes["sampled"].items()}
