"""Rewards: a grader's verdict as a score, or a score of the user's own, each bounded in time.

`rl.reward.name` is a grader of `evaluation.graders`, or the dotted path of one's own Grader or of a function
`(response: str, answer: str, **settings) -> bool | float`. Every reward runs in a pool of subprocesses that kills what
hangs or crashes.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from common.errors import ConfigError
from evaluation import graders
from evaluation.grading import GradingPool, Outcome, default_pool, grade

logger = logging.getLogger(__name__)

# The key of `rl.reward.settings` that is a grader's argument.
ARGUMENTS = {"numeric": "tolerance", "format": "pattern"}
REQUIRED_ARGUMENTS = ("format",)
OWN_ARGUMENT = "argument"  # that key for a Grader of the user's


def names() -> list[str]:
    """The rewards that have a name: the graders."""
    return graders.names()


def grade_math(response: str, answer: str) -> bool:
    """Mathematical equality of the response's last boxed (else final) answer with `answer`; False where none is found.

    Runs in the process's grading pool: bounded in time, callable from any thread or Ray worker.
    """
    return grade(response, answer, "math").correct


def load_reward(name: str, settings: Mapping[str, Any]) -> Callable[..., bool | float]:
    """The reward called `name`, as a function of (response, answer, **settings); one with a name runs in the pool.

    Raises ConfigError for an unknown name, for a path that leads to neither a function nor a Grader, for settings that
    do not fit it, and for `code` without the setting `run_generated_code`.
    """
    if name in graders.names():
        _check_settings(name, settings, ARGUMENTS.get(name), name in REQUIRED_ARGUMENTS)

        def graded(response: str, answer: str, **settings: Any) -> bool:
            outcome = _submit_grade(name, response, answer, settings, None).result()
            return GradingPool.verdict(outcome).correct

        return graded
    found = _imported(name)
    if _is_grader(found):
        _check_settings(name, settings, OWN_ARGUMENT)
        return lambda response, answer, argument="": found.grade(response, answer, str(argument)).correct
    try:
        inspect.signature(found).bind("response", "answer", **settings)
    except TypeError as error:
        raise ConfigError(f"rl.reward.settings: {dict(settings)} do not fit {name}: {error}") from error
    return found


def _check_settings(name: str, settings: Mapping[str, Any], argument: str | None, required: bool = False) -> None:
    """Raise ConfigError unless `settings` hold nothing but a grader's argument, and for `code` the leave to run."""
    allowed = {argument} if argument else set()
    if name == "code":
        allowed.add("run_generated_code")
    if strange := sorted(set(settings) - allowed):
        allows = f"allowed: {', '.join(sorted(allowed))}" if allowed else "it has none"
        raise ConfigError(f"rl.reward.settings: {', '.join(strange)} do not fit {name}; {allows}")
    if required and argument not in settings:
        raise ConfigError(f"rl.reward.settings: {name} needs {argument}; set rl.reward.settings.{argument}")
    if name == "code" and settings.get("run_generated_code") is not True:
        raise ConfigError(
            "rl.reward.settings: the reward code runs programs that the model wrote, in the sandbox; "
            "set rl.reward.settings.run_generated_code=true to allow it"
        )


def _imported(path: str) -> Any:
    """The user's function or Grader at `package.module.attribute` or `package.module:attribute`."""
    module, _, attribute = path.replace(":", ".").rpartition(".")
    if not module:
        raise ConfigError(f"rl.reward.name: {path!r} is not one of {', '.join(names())} or a dotted path")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the user's module raises when it is imported
        raise ConfigError(f"rl.reward.name: cannot import {path!r}: {error}") from error
    if not callable(found) and not _is_grader(found):
        raise ConfigError(f"rl.reward.name: {path!r} is a {type(found).__name__}; name a function or a Grader")
    return found


def _is_grader(found: Any) -> bool:
    return not isinstance(found, type) and callable(getattr(found, "grade", None))


def call_reward(response: str, answer: str, name: str, settings: dict[str, Any]) -> bool | float | dict[str, Any]:
    """Run the user's reward in a pool worker: a bool, a finite float, or the fields of its Grade."""
    found = _imported(name)
    if _is_grader(found):
        return asdict(found.grade(response, answer, str(settings.get(OWN_ARGUMENT, ""))))
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


def _submit(reward: str, response: str, answer: str, settings: Mapping[str, Any], timeout: float) -> Future[Outcome]:
    """Start one reward in the process's pool; `settings` become plain JSON."""
    if reward in graders.names():
        return _submit_grade(reward, response, answer, settings, timeout)
    plain = {str(name): value for name, value in settings.items()}
    return default_pool().submit(
        "rl_stage.rewards:call_reward", response, answer, reward, plain, timeout_seconds=timeout
    )


def _submit_grade(
    grader: str, response: str, answer: str, settings: Mapping[str, Any], timeout: float | None
) -> Future[Outcome]:
    argument = settings.get(ARGUMENTS.get(grader, ""))
    return default_pool().submit_grade(
        response,
        answer,
        grader if argument is None else f"{grader}:{argument}",
        run_generated_code=settings.get("run_generated_code") is True,
        timeout_seconds=timeout,
    )


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

    timeout: seconds; `code` has at least the pool's own for programs. A bool becomes `correct` or `wrong`, a float is
    the score itself (right where it reaches `correct`). Returns score, acc, no_answer and failed (0 or 1 each); a
    failed reward scores `wrong`.
    """
    outcome = await asyncio.wrap_future(_submit(reward, solution_str, str(ground_truth), settings, timeout))
    result = _scored(reward, outcome, correct, wrong)
    return {
        "score": result.score,
        "acc": float(result.correct),
        "no_answer": float(result.no_answer),
        "failed": float(result.failed),
    }


def score_many(reward: Any, pairs: Sequence[tuple[str, str]], progress: Callable[[int], None]) -> list[Scored]:
    """Score (response, answer) pairs with the settings `rl.reward`; `progress(done)` is called as they finish."""
    futures = [_submit(reward.name, response, answer, reward.settings, reward.timeout) for response, answer in pairs]
    scored = []
    for future in futures:
        scored.append(_scored(reward.name, future.result(), reward.correct, reward.wrong))
        progress(len(scored))
    return scored


@lru_cache(maxsize=64)
def _log_failure(reward: str, status: str, detail: str) -> None:
    """Say each kind of failure once in this process; the metrics count them all."""
    logger.warning("reward %s failed: %s %s", reward, status, detail)
