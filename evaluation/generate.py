"""The `generate` stage: what one model says to one benchmark, one harness task, or thinks of held-out chats."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import ConfigError
from common.files import write_json, write_json_lines
from common.problems import problem_key
from evaluation.artifact import GENERATIONS, TASK_ROWS, TOO_LONG
from evaluation.graders import parse
from evaluation.problems import Problem, read_problems
from evaluation.protocol import asked, modes

Report = Callable[..., None]
HELD_OUT_FILE = "sft_val.parquet"


def run(settings: Any, inputs: dict[str, Path], output: Path, scratch: Path, report: Report) -> None:
    """Draw what is to be measured of the model in inputs["model"]; device work alone, nothing is graded.

    settings: `eval`, `model`, `platform` of a recipe, and one of `benchmark` (an entry of eval.benchmarks), `task` (an
    entry of eval.tasks), `held_out` (true). inputs: `model`, a Hugging Face directory, and optional `chat_template`, a
    Jinja file in place of its own; for a benchmark `problems`, prepared; for held_out `data`, the prepared SFT chats,
    and optional `base`, the model before fine-tuning. Writes generations.parquet, task.parquet (with task.json) or
    held_out.parquet (all in `evaluation.artifact`), engine.json and timings.jsonl. Responses are kept in `scratch`
    shard by shard: what depends on the seed alone is equal after a kill. The process keeps its engine for the next
    call. Raises ConfigError for settings or data that cannot be evaluated, before the engine starts.
    """
    kind, what = asked(settings)
    stages = {"benchmark": _benchmark, "task": _task, "held_out": _held_out}
    facts, timings = stages[kind](settings, what, inputs, output, scratch, report)
    write_json(output / "engine.json", facts)
    write_json_lines(output / "timings.jsonl", timings)


def _benchmark(settings: Any, benchmark: Any, inputs, output: Path, scratch: Path, report: Report):
    from evaluation.generation.contract import Sample
    from evaluation.generation.sampling import sample

    evaluation = settings.eval
    problems = read_problems(inputs["problems"], benchmark.name)
    if not evaluation.run_generated_code and any(parse(problem.grader)[0].runs_code for problem in problems):
        raise ConfigError(
            f"eval.benchmarks: {benchmark.name!r} runs programs that the model writes; set "
            f"eval.run_generated_code=true to allow it, in the sandbox (docs/evaluation.md)"
        )
    prompter = _prompter(settings, inputs)
    prompts = [prompter.prompt(problem.prompt, benchmark.prompting) for problem in problems]
    # A prompt that leaves no room for a token is not answered: it counts, and `measure` says how many there are.
    fitting = [place for place, prompt in enumerate(prompts) if len(prompt.ids) < evaluation.max_length]
    longest = max(fitting or range(len(prompts)), key=lambda place: len(prompts[place].ids))
    needed = len(prompts[longest].ids) + benchmark.max_tokens
    if needed > evaluation.max_length:
        raise ConfigError(
            f"eval.max_length={evaluation.max_length}: problem {problems[longest].id!r} of {benchmark.name!r} "
            f"needs {needed} tokens; raise it, or lower the benchmark's max_tokens={benchmark.max_tokens}"
        )
    wanted = modes(benchmark)

    engine, timings = _engine(settings, inputs)
    started = time.monotonic()
    total = len(fitting) * sum(sampling.num_samples for sampling in wanted.values())
    finished = 0
    drawn = {}
    for mode, sampling in wanted.items():
        answered = sample(
            engine,
            [prompts[place].ids for place in fitting],
            sampling,
            seed=evaluation.seed,
            directory=scratch / "generations",
            batch_size=evaluation.batch_size,
            # Equal prompts count once there.
            progress=lambda done, _, before=finished: report(before + done, total),
        )
        drawn[mode] = [[Sample("", TOO_LONG, 0, 0)] * sampling.num_samples for _ in problems]
        for place, samples in zip(fitting, answered, strict=True):
            drawn[mode][place] = samples
        finished += len(fitting) * sampling.num_samples
    _write_generations(output, problems, prompts, drawn)
    timings.append({"what": benchmark.name, "generate": time.monotonic() - started})
    report(total, total)
    return _facts(evaluation, engine), timings


def _task(settings: Any, task: Any, inputs, output: Path, scratch: Path, report: Report):
    from evaluation.harness import load_tasks, run_task

    evaluation = settings.eval
    code = evaluation.run_generated_code
    loaded = load_tasks([task], task_files=evaluation.task_files, run_generated_code=code)
    engine, timings = _engine(settings, inputs)
    started = time.monotonic()
    found = run_task(
        task,
        loaded,
        engine,
        _prompter(settings, inputs).tokenizer,
        max_length=evaluation.max_length,
        seed=evaluation.seed,
        heartbeat=lambda: report(0, 1),
        directory=scratch / "tasks" / task.name,
    )
    pq.write_table(pa.Table.from_pylist(found.pop("rows"), TASK_ROWS), output / "task.parquet")
    write_json(output / "task.json", found)
    timings.append({"what": task.name, "seconds": time.monotonic() - started})
    report(1, 1)
    return _facts(evaluation, engine), timings


def _held_out(settings: Any, _: bool, inputs, output: Path, scratch: Path, report: Report):
    from evaluation.held_out import encode, forward, write

    evaluation = settings.eval
    path = inputs["data"] / HELD_OUT_FILE
    if not path.is_file():
        raise ConfigError(f"{path}: no held-out chats; prepare some or set eval.held_out_chats=0")
    rows = pq.read_table(path, columns=["messages"]).slice(0, evaluation.held_out_chats)["messages"].to_pylist()
    prompter = _prompter(settings, inputs)
    started = time.monotonic()
    encoded = []
    for number, messages in enumerate(rows):
        try:
            encoded.append(encode(prompter, messages, evaluation.max_length))
        except ConfigError as error:
            raise ConfigError(f"{path}: row {number}: {error}; or set eval.held_out_chats=0") from None
    chats = [chat for chat in encoded if chat is not None]
    if not chats:
        raise ConfigError(f"{path}: no chat fits eval.max_length={evaluation.max_length} tokens; raise it")
    found = forward(
        inputs["model"],
        inputs.get("base"),
        chats,
        dtype=evaluation.dtype,
        device="cpu" if settings.platform.name == "cpu" else "cuda",
        progress=lambda done: report(done, len(chats)),
        trust_remote_code=settings.model.trust_remote_code,
    )
    write(output / "held_out.parquet", found, [chat is not None for chat in encoded])
    timings = [{"what": "held_out", "seconds": time.monotonic() - started}]
    report(len(chats), len(chats))
    return _facts(evaluation, None), timings


def _prompter(settings: Any, inputs: dict[str, Path]):
    from evaluation.generation.prompts import Prompter

    model = settings.model
    template = inputs.get("chat_template") or model.chat_template or None
    return Prompter(inputs["model"], template, model.trust_remote_code)


def _engine(settings: Any, inputs: dict[str, Path]):
    """This process's engine with the model's weights, and how long that took."""
    from evaluation.generation import EngineOptions
    from evaluation.generation import engine as engines

    started = time.monotonic()
    evaluation = settings.eval
    options = EngineOptions(
        platform=settings.platform.name,
        dtype=evaluation.dtype,
        max_length=evaluation.max_length,
        gpu_memory=evaluation.gpu_memory,
        trust_remote_code=settings.model.trust_remote_code,
    )
    engine = engines.engine_for(inputs["model"], options, evaluation.replicas)
    return engine, [{"what": "engine", "seconds": time.monotonic() - started}]


def _facts(evaluation: Any, engine: Any) -> dict[str, Any]:
    """What drew the responses; forward passes over fixed text draw none, and have no vLLM."""
    return {
        "vllm": None if engine is None else engine.description["vllm"],
        "dtype": evaluation.dtype,
        "max_length": evaluation.max_length,
        "reproducible": engine is None or engine.reproducible,
    }


def _write_generations(output: Path, problems: Sequence[Problem], prompts, drawn) -> None:
    rows = []
    for mode in drawn:
        for problem, prompt, samples in zip(problems, prompts, drawn[mode], strict=True):
            key = problem_key(problem.prompt).hex()
            for index, sample in enumerate(samples):
                rows.append(
                    {
                        "id": problem.id,
                        "key": key,
                        "mode": mode,
                        "sample": index,
                        "prompt": prompt.text,
                        "response": sample.text,
                        "finish_reason": sample.finish_reason,
                        "tokens": sample.tokens,
                        "seed": sample.seed,
                        "answer": problem.answer,
                        "grader": problem.grader,
                    }
                )
    pq.write_table(pa.Table.from_pylist(rows, GENERATIONS), output / "generations.parquet")
