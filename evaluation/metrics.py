"""From graded responses, sums over held-out chats and scores of harness tasks to metrics with their intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from evaluation.artifact import AT_MOST
from evaluation.grading.pool import GradingPool
from evaluation.held_out import ENTROPY_EDGES, HeldOut
from evaluation.quantiles import quantiles
from evaluation.statistics import (
    Estimate,
    bootstrap,
    class_weights,
    pass_at_k,
    ratio_of_sums,
    same_problems,
    share,
)

DIVERSITY_SECONDS = 300.0
QUARTILES = (25, 50, 75)
Intervals = dict[str, dict[str, Any]]


def of_benchmark(
    benchmark: Any,
    answers: Sequence[str],
    drawn: Sequence[Sequence[Any]],
    grades: Mapping[str, Sequence[Sequence[Any]]],
    evaluation: Any,
    pool: GradingPool,
    beat: Callable[[], None],
) -> Intervals:
    """Metrics of a benchmark's responses, by name.

    benchmark: an entry of eval.benchmarks. answers: of each problem. drawn: of each problem the sampled responses
    (text, tokens, finish_reason). grades: of each mode and problem its responses' `Grade`s. evaluation: `k`, `seed` and
    `resamples` of the section eval. beat() is called every few seconds at least.
    """

    def estimate(values, **options) -> Estimate:
        beat()
        return bootstrap(values, seed=evaluation.seed, resamples=evaluation.resamples, **options)

    found = _accuracies(benchmark, answers, grades, evaluation.k, lambda grade: grade.correct)
    if benchmark.num_samples > 1:
        found["same_problems"] = same_problems([[grade.correct for grade in row] for row in grades["sampled"]])
    beat()
    if any(grade.failed for mode in grades.values() for row in mode for grade in row):
        # What no grader judged counts as wrong above; here it counts as right.
        bounds = _accuracies(benchmark, answers, grades, evaluation.k, lambda grade: grade.correct or grade.failed)
        found |= {f"{AT_MOST}{name}": value for name, value in bounds.items()}
    tokens = np.array([[sample.tokens for sample in row] for row in drawn], dtype=np.float64)
    found["tokens_mean"] = estimate(tokens)
    shares = [quartile / 100 for quartile in QUARTILES]
    quartiles = quantiles(tokens, shares, seed=evaluation.seed, resamples=evaluation.resamples)
    beat()
    found |= {f"tokens_p{quartile}": value for quartile, value in zip(QUARTILES, quartiles, strict=True)}
    truncated = [[sample.finish_reason == "length" for sample in row] for row in drawn]
    found["truncated"] = estimate(np.mean(truncated, axis=1), proportion=True)
    unanswered = [[grade.status == "no_answer" for grade in row] for row in grades["sampled"]]
    found["unanswered"] = estimate(np.mean(unanswered, axis=1), proportion=True)
    ungraded = [[grade.failed for grade in row] for row in grades["sampled"]]
    found["ungraded"] = estimate(np.mean(ungraded, axis=1), proportion=True)
    if benchmark.num_samples > 1:
        for name, values in _diversity(benchmark.name, drawn, pool, beat).items():
            found[name] = estimate(values)
    return {name: asdict(value) for name, value in found.items()}


def _accuracies(
    benchmark: Any,
    answers: Sequence[str],
    grades: Mapping[str, Sequence[Sequence[Any]]],
    ks: Sequence[int],
    right: Callable[[Any], bool],
) -> dict[str, Estimate]:
    """pass@k, greedy and balanced accuracy by name; `right` says which grades count."""
    found: dict[str, Estimate] = {}
    correct = [sum(map(right, row)) for row in grades["sampled"]]
    for k in sorted({1, *(k for k in ks if k <= benchmark.num_samples)}):
        of_count = {count: pass_at_k(benchmark.num_samples, count, k) for count in set(correct)}
        found[f"pass@{k}"] = share([of_count[count] for count in correct])
    if "greedy" in grades:
        found["greedy"] = share([right(row[0]) for row in grades["greedy"]])
    if benchmark.balanced:
        rates = [count / benchmark.num_samples for count in correct]
        found["balanced_accuracy"] = share(rates, weights=class_weights(answers))
    return found


def _diversity(name: str, drawn, pool: GradingPool, beat: Callable[[], None]) -> dict[str, list[float]]:
    """Figures of `evaluation.diversity` by name, of the problems that have them."""
    # In the grading processes: sacrebleu is pure Python and the problems are independent.
    texts = [[sample.text for sample in row] for row in drawn]
    futures = [pool.submit("evaluation.diversity:of_problem", row, timeout_seconds=DIVERSITY_SECONDS) for row in texts]
    outcomes = []
    for future in futures:
        outcomes.append(future.result())
        beat()
    failed = [outcome for outcome in outcomes if outcome.status != "ok"]
    if failed:
        raise RuntimeError(f"{name}: diversity of {len(failed)} problems failed: {failed[0]}")
    figures = {
        figure: [outcome.value[figure] for outcome in outcomes if outcome.value[figure] is not None]
        for figure in outcomes[0].value
    }
    return {figure: values for figure, values in figures.items() if values}


def of_held_out(found: HeldOut, seed: int, resamples: int) -> dict[str, Any]:
    """{"metrics": per token, "entropy_histogram": {"edges", "shares"}} of sums over chats."""

    def per_token(sums: np.ndarray) -> dict[str, Any]:
        # Token-weighted: the ratio of two sums over the resampled chats.
        both = np.stack([sums, found.tokens], axis=1)
        return asdict(bootstrap(both, seed=seed, resamples=resamples, statistic=ratio_of_sums))

    def share(tokens: np.ndarray) -> dict[str, Any]:
        # Where no chat has a token in the bin, or all tokens of all are, resampling would see no variation.
        if not tokens.any() or (tokens == found.tokens).all():
            return asdict(bootstrap(tokens / found.tokens, seed=seed, resamples=resamples, proportion=True))
        return per_token(tokens)

    metrics = {"entropy": per_token(found.entropy), "loss": per_token(found.loss)}
    metrics["plausible_entropy"] = per_token(found.plausible)
    if found.kl is not None:
        metrics["kl_from_base"] = per_token(found.kl)
    if found.drift is not None:
        metrics["label_drift"] = per_token(found.drift)
    shares = [share(tokens) for tokens in found.histogram.T]
    return {"metrics": metrics, "entropy_histogram": {"edges": list(ENTROPY_EDGES[:-1]), "shares": shares}}


def of_task(rows: Iterable[Mapping[str, Any]], seed: int, resamples: int) -> Intervals:
    """Metrics of a harness task, "metric,filter", from its rows as of `artifact.SCORES`, in the harness' order.

    The mean over all problems, or over parts of problems where these count each.
    """
    values: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for metric, pair in json.loads(row["scores"]).items():
            values.setdefault(f"{metric},{row['filter']}", []).append(tuple(pair))
    found = {}
    for name, pairs in sorted(values.items()):
        both = np.array(pairs, dtype=np.float64)
        sums, counts = both.T
        if (sums >= 0).all() and (sums <= counts).all() and (counts > 0).all():
            found[name] = share(sums / counts, weights=counts)
        else:
            found[name] = bootstrap(both, seed=seed, resamples=resamples, statistic=ratio_of_sums)
    return {name: asdict(value) for name, value in found.items()}
