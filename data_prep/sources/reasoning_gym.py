"""Generated reasoning tasks: demonstrations, RL prompts and benchmarks drawn from tasks of the reasoning-gym package.

A task gives a question and its answer, no solution: a demonstration states the answer (`response`), and `rewrite` may
replace it by one that a model found. Which part may ask a question is decided by the question, so that no two parts
share one, whatever their sizes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import random
from collections.abc import Collection, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from common.errors import ConfigError
from common.problems import plain
from data_prep.sources.contract import Row, Source

# Tasks whose questions have one right answer, and what judges it: others are judged by code of the package, which would
# evaluate what a model wrote.
TASKS = {
    **dict.fromkeys(
        (
            "aiw", "base_conversion", "basic_arithmetic", "binary_alternation", "chain_sum", "count_bits",
            "count_primes", "decimal_chain_sum", "fraction_simplification", "gcd", "gsm_symbolic", "largest_island",
            "lcm", "leg_counting", "letter_counting", "number_sequence", "products", "rectangle_count",
            "rotten_oranges", "simple_equations", "simple_geometry",
        ),
        "math",
    ),
    **dict.fromkeys(
        (
            "caesar_cipher", "course_schedule", "isomorphic_strings", "needle_haystack", "ransom_note",
            "spell_backward", "syllogism", "word_sequence_reversal",
        ),
        "exact",
    ),
}  # fmt: skip
SHARES = {"benchmark": 0.2, "sft_val": 0.1, "rl_val": 0.05, "sft_train": 0.35, "rl_train": 0.3}  # of a task's questions
SIZES = {
    "sft_train": "sft_examples",
    "sft_val": "sft_val_examples",
    "rl_train": "rl_prompts",
    "rl_val": "rl_val_prompts",
}
TRIES = 10  # questions drawn for each one that is wanted, since a small task repeats itself
ANSWER = "{answer}"  # in `response`
TOKENS, RESPONSE_TOKENS = 64, 16  # of a chat, about


def _size(default: int, description: str) -> Any:
    return Field(default, description=description, gt=0)


class ReasoningGym(BaseModel):
    """Which tasks, and how much of them. Chats and prompts are shared out evenly between the tasks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: dict[str, dict[str, Any]] = Field(
        {}, description="task -> its settings, e.g. {chain_sum: {max_terms: 3, max_digits: 2}}"
    )
    response: str = Field("The answer is \\boxed{{answer}}.", description="a demonstration, with {answer} in it")
    sft_examples: int = _size(1024, "demonstrations")
    sft_val_examples: int = _size(128, "held-out demonstrations")
    rl_prompts: int = _size(1024, "prompts for reinforcement learning")
    rl_val_prompts: int = _size(64, "held-out prompts for reinforcement learning")
    problems: int = _size(128, "held-out problems of each task, a benchmark called as the task")

    @field_validator("response")
    @classmethod
    def _states_the_answer(cls, value: str) -> str:
        if ANSWER not in value:
            raise ValueError(f"has to have {ANSWER} in it")
        return value


class GeneratedTasks(Source):
    name = "reasoning_gym"
    section = ReasoningGym
    reference = "Stojanovski et al. 2025, Reasoning Gym"

    def inputs(self, section: ReasoningGym, part: str) -> dict[str, str]:
        if not section.tasks:
            raise ConfigError("data.reasoning_gym.tasks is empty; name one, e.g. '{chain_sum: {max_terms: 3}}'")
        for task, settings in section.tasks.items():
            _check(task, settings)
        return {}

    def parts(self, section: ReasoningGym, inputs: Mapping[str, Path], seed: int) -> dict[str, Iterator[Row]]:
        found = {split: _rows(section, seed, split) for split in SIZES}
        return found | {f"benchmark/{task}": _problems(section, seed, task) for task in section.tasks}

    def benchmarks(self, section: ReasoningGym) -> list[str]:
        return list(section.tasks)

    def identity(self, section: ReasoningGym, part: str) -> dict[str, Any]:
        settings, kind = section.model_dump(mode="json"), part.partition("/")[0]
        named = [size for split, size in SIZES.items() if split.startswith(kind)] or ["problems"]
        task = part.removeprefix("benchmark/")
        tasks = {task: settings["tasks"][task]} if kind == "benchmark" else settings["tasks"]
        shown = {"response": settings["response"]} if kind == "sft" else {}
        return {**shown, **{name: settings[name] for name in named}, "tasks": tasks, "installed": _version()}

    def graders(self, section: ReasoningGym, part: str) -> Collection[str]:
        return {TASKS[task] for task in section.tasks if task in TASKS}

    def rough_rows(self, section: ReasoningGym, part: str) -> float:
        sizes = {"sft": section.sft_examples, "rl": section.rl_prompts}
        return float(sizes.get(part, section.problems))

    def rough_tokens(self, section: ReasoningGym, max_length: int | None = None) -> tuple[float, float, float]:
        return section.sft_examples, section.sft_examples * TOKENS, section.sft_examples * RESPONSE_TOKENS


def _rows(section: ReasoningGym, seed: int, split: str) -> Iterator[Row]:
    """The tasks take turns."""
    wanted, tasks = getattr(section, SIZES[split]), sorted(section.tasks)
    drawn = []
    for place, task in enumerate(tasks):
        share = wanted // len(tasks) + (place < wanted % len(tasks))
        found = _drawn(section, seed, task, split, share, SIZES[split])
        drawn.append([(task, question, answer) for question, answer in found])
    for index, one in enumerate(each for turn in zip_longest(*drawn) for each in turn if each is not None):
        task, question, answer = one
        if split.startswith("rl"):
            row = {"prompt": question, "answer": answer, "grader": TASKS[task], "data_source": task}
        else:
            told = section.response.replace(ANSWER, answer)
            row = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": told}]}
        yield Row(f"reasoning_gym {split} {index}", row | {"id": f"{split}-{task}-{index}"})


def _problems(section: ReasoningGym, seed: int, task: str) -> Iterator[Row]:
    drawn = _drawn(section, seed, task, "benchmark", section.problems, "problems")
    for index, (question, answer) in enumerate(drawn):
        row = {"id": f"{task}-{index}", "prompt": question, "answer": answer, "grader": TASKS[task]}
        yield Row(f"reasoning_gym benchmark {task} {index}", row)


def _drawn(section: ReasoningGym, seed: int, task: str, split: str, wanted: int, size: str) -> list[tuple[str, str]]:
    """So many different questions of a task that this split may ask, with their answers."""
    found: dict[str, tuple[str, str]] = {}
    if not wanted:
        return []
    for question, answer in _generated(section, seed, task, int(TRIES * wanted / SHARES[split])):
        key = plain(question)
        if key not in found and split_of(key) == split:
            found[key] = (question, answer)
            if len(found) == wanted:
                return list(found.values())
    raise ConfigError(
        f"data.reasoning_gym.tasks.{task}: has {len(found)} different questions for {split}, {wanted} are asked for; "
        f"lower data.reasoning_gym.{size}, or widen the task by its settings"
    )


def split_of(question: str) -> str:
    """The split that may ask a question (as `common.problems.plain` gives it), by its hash and `SHARES`."""
    place = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") / 2**64
    for split, share in SHARES.items():
        place -= share
        if place < 0:
            return split
    return split  # the shares' sum may be a rounding below 1


def _generated(section: ReasoningGym, seed: int, task: str, count: int) -> Iterator[tuple[str, str]]:
    # An item's own seed is the data set's plus its number: two close ones would give the same items.
    own = random.Random(f"{task} {seed}").getrandbits(31)
    data_set, kept = _data_set(task, section.tasks[task], own, count), random.getstate()
    for number in range(count):
        random.seed(own + number)  # some tasks draw from the global generator too
        try:
            entry = data_set[number]
        finally:
            random.setstate(kept)
        yield entry["question"].strip(), entry["answer"]


def _data_set(task: str, settings: Mapping[str, Any], seed: int, size: int) -> Any:
    import reasoning_gym

    _check(task, settings)
    try:
        return reasoning_gym.create_dataset(task, seed=seed, size=size, **settings)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"data.reasoning_gym.tasks.{task}: {' '.join(str(error).split())}") from None


def _check(task: str, settings: Mapping[str, Any]) -> None:
    field = f"data.reasoning_gym.tasks.{task}"
    if task not in TASKS:
        raise ConfigError(f"{field}: is no task with one right answer; allowed: {', '.join(sorted(TASKS))}")
    _version()
    from reasoning_gym.factory import DATASETS

    allowed = [name for name in DATASETS[task][1].__dataclass_fields__ if name not in ("seed", "size")]
    unknown = [name for name in settings if name not in allowed]
    if unknown:
        raise ConfigError(f"{field}.{unknown[0]}: is no setting of this task; allowed: {', '.join(allowed)}")


def _version() -> str:
    try:
        return importlib.metadata.version("reasoning-gym")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("reasoning-gym is not installed; pip install '.[reasoning-gym]'") from None


SOURCE = GeneratedTasks()
