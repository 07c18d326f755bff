"""The `evaluate` stage: generate, grade, measure; see `run`."""

import json
import pathlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evaluation.artifact import GENERATIONS, TASK_ROWS, write_metrics
from evaluation.benchmarks import Problem, read_benchmark
from evaluation.grading.pool import GradingPool, Outcome, default_pool
from evaluation.statistics import Estimate, balanced_accuracy, bootstrap, pass_at_k, ratio_of_sums

if TYPE_CHECKING:
    from evaluation.held_out import HeldOut

Report = Callable[..., None]
HELD_OUT_FILE = "sft_val.parquet"
DIVERSITY_SECONDS = 300.0


def run(
    settings: SimpleNamespace,
    inputs: dict[str, pathlib.Path],
    output: pathlib.Path,
    scratch: pathlib.Path,
    report: Report,
) -> None:
    """Evaluate the model in inputs["model"] on the benchmarks of inputs["data"], and its drift from inputs["base"].

    settings: `eval`, `model`, `platform` of a recipe. inputs: `model` and optional `base`, Hugging Face directories;
    `data`, a `prepare` artifact. Writes metrics.json, generations/<benchmark>.parquet, tasks/<task>.parquet (all in
    `evaluation.artifact`) and timings.jsonl. Responses are kept in `scratch` shard by shard; what depends on the seed
    alone is equal after a kill.
    Raises ValueError for settings or data that cannot be evaluated, before the engine starts.
    """
    from evaluation.generation.engine import EngineOptions, engine_for
    from evaluation.generation.prompts import Prompter
    from evaluation.generation.sampling import Sampling
    from evaluation.harness import load_tasks, run_task

    evaluation, model = settings.eval, settings.model
    if not evaluation.benchmarks and not evaluation.tasks:
        raise ValueError(
            "eval.benchmarks, eval.tasks: nothing to evaluate; list at least one or set eval.enabled=false"
        )
    names = [one.name for one in (*evaluation.benchmarks, *evaluation.tasks)]
    if len(set(names)) < len(names):
        raise ValueError(f"eval.benchmarks, eval.tasks: a name occurs twice in {', '.join(names)}")
    if any(k < 1 for k in evaluation.k):
        raise ValueError(f"eval.k={evaluation.k}: each k of pass@k is at least 1; leave the others out")
    template = pathlib.Path(model.chat_template) if model.chat_template else None
    prompter = Prompter(inputs["model"], template, model.trust_remote_code)
    work = []
    for benchmark in evaluation.benchmarks:
        problems = read_benchmark(inputs["data"], benchmark.name)
        if any(problem.grader == "code" for problem in problems) and not evaluation.run_generated_code:
            raise ValueError(
                f"eval.benchmarks: {benchmark.name!r} runs programs that the model writes; set "
                f"eval.run_generated_code=true to allow it, in the sandbox (docs/evaluation.md)"
            )
        prompts = [prompter.prompt(problem.prompt, benchmark.prompting) for problem in problems]
        longest = max(range(len(prompts)), key=lambda place: len(prompts[place].ids))
        needed = len(prompts[longest].ids) + benchmark.max_tokens
        if needed > evaluation.max_length:
            raise ValueError(
                f"eval.max_length={evaluation.max_length}: problem {problems[longest].id!r} of {benchmark.name!r} "
                f"needs {needed} tokens; raise it, or lower the benchmark's max_tokens={benchmark.max_tokens}"
            )
        settings_of = benchmark.num_samples, benchmark.temperature, benchmark.top_p, benchmark.max_tokens
        try:
            modes = {"sampled": Sampling(*settings_of)}
        except ValueError as error:
            raise ValueError(f"eval.benchmarks: {benchmark.name!r}: {error}") from None
        if benchmark.greedy and benchmark.temperature > 0:
            modes["greedy"] = Sampling(1, 0.0, 1.0, benchmark.max_tokens)
        work.append((benchmark, problems, prompts, modes))

    loaded: Any = None
    if evaluation.tasks:
        code = evaluation.run_generated_code
        loaded = load_tasks(evaluation.tasks, task_files=evaluation.task_files, run_generated_code=code)

    timings = []
    started = time.monotonic()
    held_out = _held_out(settings, inputs, prompter, report)
    timings.append({"what": "held_out", "seconds": time.monotonic() - started})

    started = time.monotonic()
    options = EngineOptions(
        platform=settings.platform.name,
        dtype=evaluation.dtype,
        max_length=evaluation.max_length,
        gpu_memory=evaluation.gpu_memory,
        trust_remote_code=model.trust_remote_code,
    )
    engine = engine_for(inputs["model"], options, evaluation.replicas)
    timings.append({"what": "engine", "seconds": time.monotonic() - started})

    pool = default_pool()
    total = sum(len(problems) * s.num_samples for _, problems, _, modes in work for s in modes.values())
    progress = _Progress(report, total)
    (output / "generations").mkdir()
    benchmarks = {}
    for benchmark, problems, prompts, modes in work:
        started = time.monotonic()
        drawn: dict[str, list[list[Any]]] = {}
        grades: dict[str, list[list[Any]]] = {}
        for mode, sampling in modes.items():
            drawn[mode], futures = _generate(
                engine,
                problems,
                [prompt.ids for prompt in prompts],
                sampling,
                seed=evaluation.seed,
                directory=scratch / "generations",
                batch_size=evaluation.batch_size,
                progress=progress,
                pool=pool,
                run_generated_code=evaluation.run_generated_code,
            )
            grades[mode] = _verdicts(problems, futures, progress.beat)
        generated = time.monotonic()
        metrics = _metrics(benchmark, problems, drawn, grades, evaluation, pool, progress.beat)
        statuses = Counter(grade.status for rows in grades.values() for row in rows for grade in row)
        benchmarks[benchmark.name] = {
            "protocol": {**vars(benchmark), "seed": evaluation.seed},
            "counts": {
                "problems": len(problems),
                "responses": statuses.total(),
                "grading": dict(sorted(statuses.items())),
            },
            "metrics": metrics,
        }
        _write_generations(output, benchmark.name, problems, prompts, drawn, grades)
        finished = time.monotonic()
        timings.append({"what": benchmark.name, "generate": generated - started, "measure": finished - generated})
    tasks = {}
    for task in evaluation.tasks:
        started = time.monotonic()
        found = run_task(
            task,
            loaded,
            engine,
            prompter.tokenizer,
            max_length=evaluation.max_length,
            seed=evaluation.seed,
            resamples=evaluation.resamples,
            heartbeat=progress.beat,
            directory=scratch / "tasks" / task.name,
        )
        (output / "tasks").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(found.pop("rows"), TASK_ROWS), output / "tasks" / f"{task.name}.parquet")
        estimates = {name: asdict(value) for name, value in found.pop("metrics").items()}
        counts = {"problems": found.pop("problems")}
        tasks[task.name] = {"protocol": vars(task), "counts": counts, **found, "metrics": estimates}
        timings.append({"what": task.name, "seconds": time.monotonic() - started})
    engine_facts = {
        "vllm": engine.description["vllm"],
        "dtype": evaluation.dtype,
        "max_length": evaluation.max_length,
        "reproducible": engine.reproducible,
    }
    metrics = {"engine": engine_facts, "held_out": held_out, "benchmarks": benchmarks, "tasks": tasks}
    write_metrics(output, {**metrics, "base_minimum": evaluation.base_minimum})
    (output / "timings.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in timings))
    report(total, total, **_headline(benchmarks))


class _Progress:
    """Responses drawn so far, over all benchmarks and modes."""

    def __init__(self, report: Report, total: int):
        self.report, self.total = report, total
        self.finished = 0
        self.current = 0

    def update(self, done: int, total: int) -> None:
        """`done` of the `total` requests of the current benchmark and mode; equal prompts count once there."""
        self.current = done
        self.beat()

    def beat(self) -> None:
        self.report(min(self.finished + self.current, self.total), self.total)

    def close(self, responses: int) -> None:
        """The current benchmark and mode are drawn."""
        self.finished += responses
        self.current = 0


def _generate(
    engine,
    problems,
    prompts,
    sampling,
    *,
    seed,
    directory,
    batch_size,
    progress: _Progress,
    pool: GradingPool,
    run_generated_code,
) -> tuple[list[list[Any]], list[list["Future[Outcome]"]]]:
    """Draw the responses; each is handed to the grading pool when its shard is done, while the next is generated."""
    from evaluation.generation.sampling import sample

    futures: list[list[Any]] = [[None] * sampling.num_samples for _ in problems]

    def grade(place: int, index: int, drawn) -> None:
        problem: Problem = problems[place]
        futures[place][index] = pool.submit_grade(
            drawn.text, problem.answer, problem.grader, run_generated_code=run_generated_code
        )

    drawn = sample(
        engine,
        prompts,
        sampling,
        seed=seed,
        directory=directory,
        batch_size=batch_size,
        progress=progress.update,
        on_sample=grade,
    )
    progress.close(len(problems) * sampling.num_samples)
    return drawn, futures


def _verdicts(problems: Sequence[Problem], futures, beat: Callable[[], None]) -> list[list[Any]]:
    grades = []
    for problem, pending in zip(problems, futures, strict=True):
        try:
            grades.append([GradingPool.verdict(future.result()) for future in pending])
        except ValueError as error:
            raise ValueError(f"problem {problem.id!r}: {error}") from None
        beat()
    return grades


def _metrics(
    benchmark, problems: Sequence[Problem], drawn, grades, evaluation, pool: GradingPool, beat
) -> dict[str, dict]:
    def estimate(values, **options) -> Estimate:
        beat()
        return bootstrap(values, seed=evaluation.seed, resamples=evaluation.resamples, **options)

    found: dict[str, Estimate] = {}
    correct = [sum(grade.correct for grade in row) for row in grades["sampled"]]
    for k in sorted({1, *(k for k in evaluation.k if k <= benchmark.num_samples)}):
        values = [pass_at_k(benchmark.num_samples, count, k) for count in correct]
        found[f"pass@{k}"] = estimate(values, proportion=True)
    if "greedy" in grades:
        found["greedy"] = estimate([row[0].correct for row in grades["greedy"]], proportion=True)
    if benchmark.balanced:
        classes = {answer: place for place, answer in enumerate(sorted({problem.answer for problem in problems}))}
        rows = [[count / benchmark.num_samples, classes[p.answer]] for count, p in zip(correct, problems, strict=True)]
        found["balanced_accuracy"] = estimate(rows, statistic=partial(balanced_accuracy, classes=len(classes)))
    tokens = np.array([[sample.tokens for sample in row] for row in drawn["sampled"]], dtype=np.float64)
    found["tokens_mean"] = estimate(tokens)
    for quartile in (25, 50, 75):
        found[f"tokens_p{quartile}"] = estimate(
            tokens, statistic=lambda sample, q=quartile: np.percentile(sample.reshape(len(sample), -1), q, axis=1)
        )
    truncated = [[sample.finish_reason == "length" for sample in row] for row in drawn["sampled"]]
    found["truncated"] = estimate(np.mean(truncated, axis=1), proportion=True)
    unanswered = [[grade.status == "no_answer" for grade in row] for row in grades["sampled"]]
    found["unanswered"] = estimate(np.mean(unanswered, axis=1), proportion=True)
    ungraded = [[grade.failed for grade in row] for row in grades["sampled"]]
    found["ungraded"] = estimate(np.mean(ungraded, axis=1), proportion=True)
    if benchmark.num_samples > 1:
        # In the grading processes: sacrebleu is pure Python and the problems are independent.
        texts = [[sample.text for sample in row] for row in drawn["sampled"]]
        futures = [
            pool.submit("evaluation.diversity:of_problem", row, timeout_seconds=DIVERSITY_SECONDS) for row in texts
        ]
        outcomes = []
        for future in futures:
            outcomes.append(future.result())
            beat()
        failed = [outcome for outcome in outcomes if outcome.status != "ok"]
        if failed:
            raise RuntimeError(f"{benchmark.name}: diversity of {len(failed)} problems failed: {failed[0]}")
        for name in outcomes[0].value:
            values = [outcome.value[name] for outcome in outcomes if outcome.value[name] is not None]
            if values:
                found[name] = estimate(values)
    return {name: asdict(value) for name, value in found.items()}


def _held_out(settings, inputs, prompter, report: Report) -> dict[str, Any] | None:
    from evaluation.held_out import encode, measure

    evaluation = settings.eval
    path = inputs["data"] / HELD_OUT_FILE
    if evaluation.held_out_chats == 0:
        return None
    if not path.is_file():
        raise ValueError(f"{path}: no held-out chats; prepare some or set eval.held_out_chats=0")
    rows = pq.read_table(path, columns=["messages"]).slice(0, evaluation.held_out_chats)["messages"].to_pylist()
    encoded = []
    for number, messages in enumerate(rows):
        try:
            encoded.append(encode(prompter, messages, evaluation.max_length))
        except ValueError as error:
            raise ValueError(f"{path}: row {number}: {error}; or set eval.held_out_chats=0") from None
    chats = [chat for chat in encoded if chat is not None]
    if not chats:
        raise ValueError(f"{path}: no chat fits eval.max_length={evaluation.max_length} tokens; raise it")
    found = measure(
        inputs["model"],
        inputs.get("base"),
        chats,
        dtype=evaluation.dtype,
        device="cpu" if settings.platform.name == "cpu" else "cuda",
        progress=lambda done: report(done, len(chats)),
        trust_remote_code=settings.model.trust_remote_code,
    )

    counts = {"chats": len(chats), "chats_too_long": len(encoded) - len(chats), "tokens": int(found.tokens.sum())}
    return {"counts": counts, **_held_out_metrics(found, evaluation.seed, evaluation.resamples)}


def _held_out_metrics(found: "HeldOut", seed: int, resamples: int) -> dict[str, Any]:
    from evaluation.held_out import ENTROPY_EDGES

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
    if found.kl is not None:
        metrics["kl_from_base"] = per_token(found.kl)
    shares = [share(tokens) for tokens in found.histogram.T]
    return {"metrics": metrics, "entropy_histogram": {"edges": list(ENTROPY_EDGES[:-1]), "shares": shares}}


def _write_generations(output, name, problems, prompts, drawn, grades) -> None:
    rows = []
    for mode in drawn:
        for place, problem in enumerate(problems):
            for index, (sample, grade) in enumerate(zip(drawn[mode][place], grades[mode][place], strict=True)):
                rows.append(
                    {
                        "id": problem.id,
                        "mode": mode,
                        "sample": index,
                        "prompt": prompts[place].text,
                        "response": sample.text,
                        "finish_reason": sample.finish_reason,
                        "tokens": sample.tokens,
                        "seed": sample.seed,
                        "answer": problem.answer,
                        "grader": problem.grader,
                        "correct": grade.correct,
                        "status": grade.status,
                    }
                )
    pq.write_table(pa.Table.from_pylist(rows, GENERATIONS), output / "generations" / f"{name}.parquet")


def _headline(benchmarks: dict[str, dict]) -> dict[str, float]:
    """pass@1 of the first benchmark with its interval, to be shown beside the progress."""
    if not benchmarks:
        return {}
    name, found = next(iter(benchmarks.items()))
    estimate = found["metrics"]["pass@1"]
    return {f"{name}/pass@1": estimate["value"], "low": estimate["low"], "high": estimate["high"]}
