"""Generated reasoning tasks: demonstrations, RL prompts and benchmarks drawn from tasks of the reasoning-gym package.

A task gives a question and its answer, no solution: a demonstration states the answer (`response`), and `rewrite` may
replace it by one that a model found. Of each task held-out problems are drawn first and nothing asks them again.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Iterator, Mapping
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from common.errors import ConfigError
from common.problems import plain
from data_prep.sources.contract import Row, Source

ANSWER = "{answer}"  # in `response`
TRIES = 20  # questions drawn for each one that is wanted, since a small task repeats itself
TOKENS, RESPONSE_TOKENS = 64, 16  # of a chat, about


def _size(default: int, description: str) -> Any:
    return Field(default, description=description, gt=0)


class ReasoningGym(BaseModel):
    """Which tasks, and how much of them. Chats and prompts are shared out evenly between the tasks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: dict[str, dict[str, Any]] = Field(
        {"chain_sum": {}},
        min_length=1,
        description="task -> its settings, e.g. {chain_sum: {max_terms: 3, max_digits: 2}}",
    )
    response: str = Field("The answer is \\boxed{{answer}}.", description="a demonstration, with {answer} in it")
    grader: str = Field("math", description="what judges answers, where a task's are no numbers `exact` or another")
    sft_examples: int = _size(1024, "demonstrations")
    sft_val_examples: int = _size(128, "held-out demonstrations")
    rl_prompts: int = _size(1024, "prompts for reinforcement learning")
    rl_val_prompts: int = _size(64, "held-out prompts for reinforcement learning")
    problems: int = _size(128, "held-out problems of each task, a benchmark called as the task")


class GeneratedTasks(Source):
    name = "reasoning_gym"
    section = ReasoningGym
    reference = "Stojanovski et al. 2025, Reasoning Gym"

    def parts(self, section: ReasoningGym, inputs: Mapping[str, Path], seed: int) -> dict[str, Iterator[Row]]:
        splits = ("sft_train", "sft_val", "rl_train", "rl_val")
        found = {split: _rows(section, seed, split) for split in splits}
        return found | {f"benchmark/{task}": _problems(section, seed, task) for task in section.tasks}

    def benchmarks(self, section: ReasoningGym) -> list[str]:
        return list(section.tasks)

    def identity(self, section: ReasoningGym, part: str) -> dict[str, Any]:
        return {**section.model_dump(mode="json"), "installed": _version()}

    def graders(self, section: ReasoningGym, part: str) -> Collection[str]:
        return (section.grader,)

    def rough_rows(self, section: ReasoningGym, part: str) -> float:
        sizes = {"sft": section.sft_examples, "rl": section.rl_prompts}
        return float(sizes.get(part, section.problems))

    def rough_tokens(self, section: ReasoningGym, max_length: int | None = None) -> tuple[float, float, float]:
        return section.sft_examples, section.sft_examples * TOKENS, section.sft_examples * RESPONSE_TOKENS


def _rows(section: ReasoningGym, seed: int, split: str) -> Iterator[Row]:
    """The tasks take turns."""
    of_tasks = [
        [(task, question, answer) for question, answer in _drawn(section, seed, task)[split]] for task in section.tasks
    ]
    for index, one in enumerate(each for turn in zip_longest(*of_tasks) for each in turn if each is not None):
        task, question, answer = one
        if split.startswith("rl"):
            row = {"prompt": question, "answer": answer, "grader": section.grader, "data_source": task}
        else:
            told = section.response.replace(ANSWER, answer)
            row = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": told}]}
        yield Row(f"reasoning_gym {split} {index}", row | {"id": f"{split}-{task}-{index}"})


def _problems(section: ReasoningGym, seed: int, task: str) -> Iterator[Row]:
    for index, (question, answer) in enumerate(_drawn(section, seed, task)["benchmark"]):
        row = {"id": f"{task}-{index}", "prompt": question, "answer": answer, "grader": section.grader}
        yield Row(f"reasoning_gym benchmark {task} {index}", row)


def _drawn(section: ReasoningGym, seed: int, task: str) -> dict[str, list[tuple[str, str]]]:
    """Split -> different questions of a task with their answers; RL's come last, so that demonstrations do not depend
    on how many there are."""
    place, count = list(section.tasks).index(task), len(section.tasks)

    def share(total: int) -> int:
        return total // count + (place < total % count)

    sizes = {
        "benchmark": section.problems,
        "sft_val": share(section.sft_val_examples),
        "rl_val": share(section.rl_val_prompts),
        "sft_train": share(section.sft_examples),
        "rl_train": share(section.rl_prompts),
    }
    wanted = sum(sizes.values())
    stream = iter(list(islice(_different(section, seed, task, TRIES * wanted), wanted)))
    found = {split: list(islice(stream, size)) for split, size in sizes.items()}
    there = sum(map(len, found.values()))
    if there < wanted:
        raise ConfigError(
            f"data.reasoning_gym.tasks.{task}: has {there} different questions, {wanted} are asked for; ask for fewer "
            "(problems, sft_examples, rl_prompts, ...), or widen the task by its settings"
        )
    return found


def _different(section: ReasoningGym, seed: int, task: str, tries: int) -> Iterator[tuple[str, str]]:
    asked: set[str] = set()
    for entry in _data_set(task, section.tasks[task], seed, tries):
        if not isinstance(entry["answer"], str):
            raise ConfigError(f"data.reasoning_gym.tasks.{task}: has no single answer to a question; name another task")
        key = plain(entry["question"])
        if key not in asked:
            asked.add(key)
            yield entry["question"].strip(), entry["answer"]


def _data_set(task: str, settings: Mapping[str, Any], seed: int, size: int) -> Any:
    field = f"data.reasoning_gym.tasks.{task}"
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise ConfigError("reasoning-gym is not installed; pip install '.[reasoning-gym]'") from None
    if task not in DATASETS:
        raise ConfigError(f"{field}: is no task of reasoning-gym; allowed: {', '.join(sorted(DATASETS))}")
    allowed = [name for name in DATASETS[task][1].__dataclass_fields__ if name not in ("seed", "size")]
    unknown = [name for name in settings if name not in allowed]
    if unknown:
        raise ConfigError(f"{field}.{unknown[0]}: is no setting of this task; allowed: {', '.join(allowed)}")
    try:
        return reasoning_gym.create_dataset(task, seed=seed, size=size, **settings)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"{field}: {' '.join(str(error).split())}") from None


def _version() -> str:
    try:
        return importlib.metadata.version("reasoning-gym")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("reasoning-gym is not installed; pip install '.[reasoning-gym]'") from None


SOURCE = GeneratedTasks()
