"""The `generate` stage: what one model says to one benchmark, one harness task, or thinks of held-out chats."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.chats import template_arguments
from common.errors import ConfigError
from common.files import text_digest, write_json, write_json_lines
from common.problems import problem_key
from evaluation.artifact import GENERATIONS, TASK_ROWS, TOO_LONG
from evaluation.graders import parse
from evaluation.problems import Problem, read_problems
from evaluation.protocol import asked, form, modes
from evaluation.sandbox import check_sandbox

Report = Callable[..., None]
HELD_OUT_FILE = "sft_val.parquet"


def run(settings: Any, inputs: dict[str, Path], output: Path, scratch: Path, report: Report) -> None:
    """Draw what is to be measured of the model in inputs["model"]; device work alone, nothing is graded.

    settings: `eval`, `model`, `platform` of a recipe, and one of `benchmark` (an entry of eval.benchmarks), `task` (an
    entry of eval.tasks), `held_out` (true). inputs: `model`, a Hugging Face directory, and optional `chat_template`, a
    Jinja file in place of its own; for a benchmark `problems`, prepared; for held_out `data`, the prepared SFT chats,
    and optional `base`, the model before fine-tuning. Writes generations.parquet, task.parquet (with task.json) or
    held_out.parquet (all in `evaluation.artifact`) with a row for every token (`evaluation.token_table`), engine.json
    and timings.jsonl. Responses are kept in `scratch`
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
    from evaluation.generation.sampling import room, sample

    evaluation = settings.eval
    problems = read_problems(inputs["problems"], benchmark.name)
    if any(parse(problem.grader)[0].runs_code for problem in problems):
        if not evaluation.run_generated_code:
            raise ConfigError(
                f"eval.benchmarks: {benchmark.name!r} runs programs that the model writes; set "
                f"eval.run_generated_code=true to allow it, in the sandbox (docs/sandbox.md)"
            )
        check_sandbox()
    prompter = _prompter(settings, inputs)
    around = form(benchmark)
    prompts = [_prompt(prompter, problem, around, benchmark.name) for problem in problems]
    context, limited_by = _context(evaluation, inputs)
    # A prompt that leaves no room for a token is not answered: it counts, and `measure` says how many there are.
    fitting = [place for place, prompt in enumerate(prompts) if len(prompt.ids) < context]
    if not fitting:
        shortest = min(len(prompt.ids) for prompt in prompts)
        raise ConfigError(
            f"{limited_by}: no problem of {benchmark.name!r} leaves room for an answer (the shortest prompt has "
            f"{shortest} tokens); raise it"
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
            context=context,
            # Equal prompts count once there.
            progress=lambda done, _, before=finished: report(before + done, total),
        )
        drawn[mode] = [[Sample("", TOO_LONG, 0, 0)] * sampling.num_samples for _ in problems]
        for place, samples in zip(fitting, answered, strict=True):
            drawn[mode][place] = samples
        finished += len(fitting) * sampling.num_samples
    limits = [max(0, room(prompt.ids, wanted["sampled"], context)) for prompt in prompts]
    _write_generations(output, problems, prompts, limits, around.prefill, drawn)
    timings.append({"what": benchmark.name, "generate": time.monotonic() - started})
    report(total, total)
    return _facts(evaluation, context, engine), timings


def _prompt(prompter, problem: Problem, around, name: str):
    try:
        return prompter.prompt(problem.prompt, around, problem.tools)
    except ConfigError as error:
        raise ConfigError(f"eval.benchmarks: {name!r}: problem {problem.id!r}: {error}") from None


def _task(settings: Any, task: Any, inputs, output: Path, scratch: Path, report: Report):
    from evaluation.harness import load_tasks, run_task

    evaluation = settings.eval
    code = evaluation.run_generated_code
    loaded = load_tasks([task], task_files=evaluation.task_files, run_generated_code=code)
    context, _ = _context(evaluation, inputs)
    engine, timings = _engine(settings, inputs)
    started = time.monotonic()
    found = run_task(
        task,
        loaded,
        engine,
        _prompter(settings, inputs).tokenizer,
        template_arguments=template_arguments(settings.model),
        max_length=context,
        seed=evaluation.seed,
        heartbeat=lambda: report(0, 1),
        directory=scratch / "tasks" / task.name,
    )
    pq.write_table(pa.Table.from_pylist(found.pop("rows"), TASK_ROWS), output / "task.parquet")
    write_json(output / "task.json", found)
    timings.append({"what": task.name, "seconds": time.monotonic() - started})
    report(1, 1)
    return _facts(evaluation, context, engine), timings


def _held_out(settings: Any, _: bool, inputs, output: Path, scratch: Path, report: Report):
    from evaluation.held_out import encode, forward, write
    from evaluation.token_table import TokenWriter

    evaluation = settings.eval
    context, limited_by = _context(evaluation, inputs)
    path = inputs["data"] / HELD_OUT_FILE
    if not path.is_file():
        raise ConfigError(f"{path}: no held-out chats; prepare some or set eval.held_out_chats=0")
    columns = [name for name in ("messages", "tools") if name in pq.read_schema(path).names]
    rows = pq.read_table(path, columns=columns).slice(0, evaluation.held_out_chats).to_pylist()
    prompter = _prompter(settings, inputs)
    started = time.monotonic()
    encoded = []
    for number, row in enumerate(rows):
        try:
            encoded.append(encode(prompter, row["messages"], context, row.get("tools")))
        except ConfigError as error:
            raise ConfigError(f"{path}: row {number}: {error}; or set eval.held_out_chats=0") from None
    chats = [chat for chat in encoded if chat is not None]
    if not chats:
        raise ConfigError(f"{path}: no chat fits {limited_by} tokens; raise it")
    if settings.platform.name != "cpu":
        _leave_device()
    with TokenWriter(output, lambda one: str(prompter.tokenizer.decode([one]))) as tokens:
        found = forward(
            inputs["model"],
            inputs.get("base"),
            chats,
            dtype=evaluation.dtype,
            device="cpu" if settings.platform.name == "cpu" else "cuda",
            progress=lambda done: report(done, len(chats)),
            trust_remote_code=settings.model.trust_remote_code,
            tokens_to=tokens,
            places=[place for place, chat in enumerate(encoded) if chat is not None],
        )
    write(output / "held_out.parquet", found, [chat is not None for chat in encoded])
    timings = [{"what": "held_out", "seconds": time.monotonic() - started}]
    report(len(chats), len(chats))
    return _facts(evaluation, context, None), timings


def _leave_device() -> None:
    """Frees what this process's engines, replicas included, hold of the devices: forward passes need it."""
    from evaluation.generation.engine import close_engine

    close_engine()


def _context(evaluation: Any, inputs: dict[str, Path]) -> tuple[int, str]:
    """Tokens of prompt and response, and what decides them: eval.max_length, or the model where it holds fewer."""
    from evaluation.generation.context import context_length

    own = context_length(inputs["model"])
    if own is None or evaluation.max_length <= own:
        return evaluation.max_length, f"eval.max_length={evaluation.max_length}"
    return own, f"{inputs['model']}/config.json: context={own}"


def _prompter(settings: Any, inputs: dict[str, Path]):
    from evaluation.generation.prompts import Prompter

    model = settings.model
    template = inputs.get("chat_template") or model.chat_template or None
    return Prompter(inputs["model"], template, model.trust_remote_code, template_arguments(model))


def _engine(settings: Any, inputs: dict[str, Path]):
    """This process's engine with the model's weights, and how long that took."""
    from evaluation.generation import EngineOptions
    from evaluation.generation import engine as engines

    started = time.monotonic()
    evaluation = settings.eval
    options = EngineOptions(
        platform=settings.platform.name,
        dtype=evaluation.dtype,
        max_length=_context(evaluation, inputs)[0],
        gpu_memory=evaluation.gpu_memory,
        tensor_parallel=evaluation.tensor_parallel,
        trust_remote_code=settings.model.trust_remote_code,
        eager=evaluation.eager,
    )
    engine = engines.engine_for(inputs["model"], options, evaluation.replicas)
    return engine, [{"what": "engine", "seconds": time.monotonic() - started}]


def _facts(evaluation: Any, context: int, engine: Any) -> dict[str, Any]:
    """What drew the responses; forward passes over fixed text draw none, and have no vLLM."""
    return {
        "vllm": None if engine is None else engine.description["vllm"],
        "dtype": evaluation.dtype,
        "max_length": context,
        "reproducible": engine is None or engine.reproducible,
    }


def _write_generations(output: Path, problems: Sequence[Problem], prompts, limits, prefill: str, drawn) -> None:
    rows = []
    for mode in drawn:
        for problem, prompt, limit, samples in zip(problems, prompts, limits, drawn[mode], strict=True):
            key = problem_key(problem.prompt, problem.tools).hex()
            asked = problem.prompt if problem.tools is None else [problem.prompt, problem.tools]
            chat = text_digest(json.dumps(asked, sort_keys=True))
            for index, sample in enumerate(samples):
                rows.append(
                    {
                        "id": problem.id,
                        "key": key,
                        "asked": chat,
                        "mode": mode,
                        "sample": index,
                        "prompt": prompt.text,
                        # The answer as a whole: graders read its beginning too.
                        "response": prefill + sample.text,
                        "finish_reason": sample.finish_reason,
                        "tokens": sample.tokens,
                        "limit": limit,
                        "seed": sample.seed,
                        "answer": problem.answer,
                        "grader": problem.grader,
                    }
                )
    pq.write_table(pa.Table.from_pylist(rows, GENERATIONS), output / "generations.parquet")
