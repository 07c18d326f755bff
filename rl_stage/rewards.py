"""Rewards: a grader's verdict as a score, or a score of the user's own, each bounded in time.

`rl.reward.name` is a grader of `evaluation.graders`, or the dotted path of one's own Grader or of a function
`(response: str, answer: str, **settings) -> bool | float`. A row of the data may name a grader of its own
(`extra_info.grader`, as `name` or `name:argument`), which judges it in place of `rl.reward.name`; its verdict is worth
`rl.reward.correct` or `rl.reward.wrong` all the same. Every reward runs in a pool of subprocesses that kills what hangs
or crashes.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from evaluation import graders
from evaluation.grading import GradingPool, Outcome, default_pool, grade
from evaluation.sandbox import check_sandbox

logger = logging.getLogger(__name__)

# The key of `rl.reward.settings` that is the grader's argument, where it is not `argument`.
ARGUMENTS = {"numeric": "tolerance", "format": "pattern"}
# The setting that lets graders, the reward's or the rows' own, run programs; it is no argument of a function.
LEAVE = "run_generated_code"


def names() -> list[str]:
    """The rewards that have a name: the graders."""
    return graders.names()


def grade_math(response: str, answer: str) -> bool:
    """Mathematical equality of the response's last boxed (else final) answer with `answer`; False where none is found.

    Runs in the process's grading pool: bounded in time, callable from any thread or Ray worker.
    """
    return grade(response, answer, "math").correct


def load_reward(name: str, settings: Mapping[str, Any]) -> Callable[..., bool | float]:
    """The reward called `name`, as a function of (response, answer, **settings); a grader judges in the pool.

    Raises ConfigError for an unknown name, for a path that leads to neither a function nor a Grader, for settings that
    do not fit it, and for a grader that runs programs without the setting `run_generated_code` or where this machine
    has no sandbox.
    """
    found = _load(name)
    if isinstance(found, graders.Grader):
        _check_settings(found, settings)

        def graded(response: str, answer: str, **settings: Any) -> bool:
            return GradingPool.verdict(_submit(name, response, answer, settings).result()).correct

        return graded
    try:
        inspect.signature(found).bind("response", "answer", **_arguments(settings))
    except TypeError as error:
        raise ConfigError(f"rl.reward.settings: {dict(settings)} do not fit {name}: {error}") from error
    return found


def check_rows(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuses rows whose own graders cannot judge them.

    Args:
        path: Parquet file of prompts in verl's columns. settings: `rl.reward.settings`.

    Raises:
        ConfigError: a row names an unknown grader, or one that runs programs without the setting `run_generated_code`.
    """
    from common.parquet import streamed

    named: set[str] = set()
    for batch in streamed(path).iter_batches(columns=["extra_info"]):
        named |= {own for row in batch.to_pylist() if (own := row_grader(row.get("extra_info"))) is not None}
    for name in sorted(named):
        try:
            runs_code = graders.parse(name)[0].runs_code
        except ConfigError as error:
            raise ConfigError(f"{path}: extra_info.grader: {error}") from None
        if runs_code and settings.get(LEAVE) is not True:
            raise ConfigError(
                f"{path}: rows name the grader {name}, which runs programs that the model wrote, in the sandbox; set "
                f"rl.reward.settings.{LEAVE}=true to allow it"
            )


def row_grader(extra_info: Any) -> str | None:
    """The grader that a row names for itself, from its `extra_info`."""
    return extra_info.get("grader") if isinstance(extra_info, Mapping) else None


def _arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of the settings of a function what it is called with."""
    return {str(name): value for name, value in settings.items() if name != LEAVE}


def _load(name: str) -> Any:
    """A grader by its name, else the user's own function or Grader by its path."""
    if name in graders.names():
        return graders.load(name)
    module, _, attribute = name.replace(":", ".").rpartition(".")
    if not module:
        raise ConfigError(f"rl.reward.name: {name!r} is not one of {', '.join(names())} or a dotted path")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's module raises when it is imported
        raise ConfigError(f"rl.reward.name: cannot import {name!r}: {error}") from error
    if not isinstance(found, graders.Grader) and not callable(found):
        raise ConfigError(f"rl.reward.name: {name!r} is a {type(found).__name__}; name a function or a Grader")
    return found


def _check_settings(grader: graders.Grader, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError unless `settings` are the grader's argument and, where it runs programs, the leave to."""
    argument = ARGUMENTS.get(grader.name, "argument")
    allowed = {argument, LEAVE}
    if strange := sorted(set(settings) - allowed):
        raise ConfigError(
            f"rl.reward.settings: {', '.join(strange)} does not fit {grader.name}; allowed: "
            f"{', '.join(sorted(allowed))}"
        )
    try:
        grader.check(str(settings.get(argument, "")))
    except ValueError as error:
        raise ConfigError(f"rl.reward.settings.{argument}: {grader.name}: {error}") from error
    if grader.runs_code and settings.get(LEAVE) is not True:
        raise ConfigError(
            f"rl.reward.settings: the reward {grader.name} runs programs that the model wrote, in the sandbox; "
            "set rl.reward.settings.run_generated_code=true to allow it"
        )
    if grader.runs_code:
        check_sandbox()


def call_reward(response: str, answer: str, name: str, settings: dict[str, Any]) -> bool | float:
    """Run the user's function in a pool worker; the result must be a bool or a finite float."""
    found = _load(name)
    assert not isinstance(found, graders.Grader)  # graders have their own way into the pool
    value: Any = found(response, answer, **settings)
    if hasattr(value, "item"):  # numpy's and torch's bools are no Python bools
        value = value.item()
    if isinstance(value, bool):
        return value
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"the reward is {value}")
    return value


@dataclass(frozen=True)
class Scored:
    """A response's score; `correct` where the answer is right, `failed` where the reward raised, hung or crashed."""

    score: float
    correct: bool
    no_answer: bool = False
    failed: bool = False


def _submit(
    reward: str,
    response: str,
    answer: str,
    settings: Mapping[str, Any],
    timeout: float | None = None,
    own: str | None = None,
) -> Future[Outcome]:
    """Start one reward in the process's pool.

    Args:
        timeout: seconds; a grader with a time of its own has at least that.
        own: the row's grader, in place of `reward`.
    """
    if own is None:
        found = _load(reward)
        if not isinstance(found, graders.Grader):
            plain = _arguments(settings)
            return default_pool().submit(
                "rl_stage.rewards:call_reward", response, answer, reward, plain, timeout_seconds=timeout
            )
        own = _name_for_pool(reward, found, settings)
    leave = settings.get(LEAVE) is True
    return default_pool().submit_grade(response, answer, own, run_generated_code=leave, timeout_seconds=timeout)


def _name_for_pool(reward: str, grader: graders.Grader, settings: Mapping[str, Any]) -> str:
    """`name[:argument]`, or of the user's own `module:attribute[:argument]`."""
    if reward not in graders.names():
        reward = ":".join(reward.replace(":", ".").rsplit(".", 1))
    argument = settings.get(ARGUMENTS.get(grader.name, "argument"))
    return reward if argument is None else f"{reward}:{argument}"


def _scored(reward: str, outcome: Outcome, correct: float, wrong: float) -> Scored:
    """What a pool's outcome is worth: a bool or a grade is `correct` or `wrong`, a float is the score itself."""
    value = outcome.value
    if outcome.status == "ok" and not isinstance(value, dict):
        if isinstance(value, bool):
            return Scored(correct if value else wrong, value)
        return Scored(float(value), value >= correct)
    try:
        verdict = GradingPool.verdict(outcome)
    except ValueError as error:
        _log_failure(reward, "bad_reference", str(error))
        return Scored(wrong, False, failed=True)
    if verdict.failed:
        _log_failure(reward, verdict.status, str(value))
        return Scored(wrong, False, failed=True)
    return Scored(correct if verdict.correct else wrong, verdict.correct, no_answer=verdict.status == "no_answer")


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Any = None,
    *,
    reward: str,
    settings: Mapping[str, Any],
    correct: float,
    wrong: float,
    timeout: float,
    **_: Any,
) -> dict[str, float]:
    """verl's reward function: the score of one response. Never raises for what a reward does, never waits for ever.

    extra_info: of the row; its `grader` judges in place of `reward`. timeout: seconds; `code` has at least the pool's
    own for programs. A bool becomes `correct` or `wrong`, a float is
    the score itself (right where it reaches `correct`). Returns score, acc, no_answer and failed (0 or 1 each); a
    failed reward scores `wrong`.
    """
    own = row_grader(extra_info)
    outcome = await asyncio.wrap_future(_submit(reward, solution_str, str(ground_truth), settings, timeout, own))
    result = _scored(own or reward, outcome, correct, wrong)
    return {
        "score": result.score,
        "acc": float(result.correct),
        "no_answer": float(result.no_answer),
        "failed": float(result.failed),
    }


def score_many(
    reward: Any,
    pairs: Sequence[tuple[str, str]],
    progress: Callable[[int], None],
    own: Sequence[str | None] | None = None,
) -> list[Scored]:
    """Score (response, answer) pairs with the settings `rl.reward`; `progress(done)` is called as they finish.

    own: of each pair the grader of its row, None where it names none.
    """
    named = own or [None] * len(pairs)
    futures = [
        _submit(reward.name, response, answer, reward.settings, reward.timeout, grader)
        for (response, answer), grader in zip(pairs, named, strict=True)
    ]
    scored = []
    for future, grader in zip(futures, named, strict=True):
        scored.append(_scored(grader or reward.name, future.result(), reward.correct, reward.wrong))
        progress(len(scored))
    return scored


@lru_cache(maxsize=64)
def _log_failure(reward: str, status: str, detail: str) -> None:
    """Say each kind of failure once in this process; the metrics count them all."""
    logger.warning("reward %s failed: %s %s", reward, status, detail)
