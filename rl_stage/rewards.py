"""Rewards: pure functions of (response, reference answer), each usable alone, each bounded in time when RL calls it.

A reward of one's own is a function `(response: str, answer: str, **settings) -> bool | float` named by its dotted path
in `rl.reward.name`. RL runs every reward in a pool of subprocesses that kills what hangs or crashes.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from evaluation.grading import extract_boxed, grade

if TYPE_CHECKING:
    from evaluation.grading import Outcome

logger = logging.getLogger(__name__)


def grade_math(response: str, answer: str) -> bool:
    """Mathematical equality of the response's last boxed (else final) answer with `answer`; False where none is found.

    Runs in the process's grading pool: bounded in time, callable from any thread or Ray worker.
    """
    return grade(response, answer, "math").correct


def grade_boxed(response: str, answer: str) -> bool:
    r"""Like `grade_math`, but only an answer in \boxed{...} counts."""
    return grade(response, answer, "boxed").correct


def grade_exact(response: str, answer: str) -> bool:
    """Equality of text after folding case, spaces and a final full stop."""
    return grade(response, answer, "exact").correct


def grade_numeric(response: str, answer: str, tolerance: float = 1e-6) -> bool:
    """Equality of numbers within a relative `tolerance`."""
    return grade(response, answer, f"numeric:{tolerance}").correct


def grade_date(response: str, answer: str) -> bool:
    """Equality of dates, however written; also of "(weeks, days)" pairs."""
    return grade(response, answer, "date").correct


def grade_range(response: str, answer: str) -> bool:
    """Whether the response's number lies within the reference's "[low, high]"."""
    return grade(response, answer, "range").correct


def grade_medcalc(response: str, answer: str) -> bool:
    """MedCalc-Bench: a reference "[low, high]" is judged as a range, any other as a date or a "(weeks, days)" pair."""
    return grade(response, answer, _medcalc_grader(answer)).correct


def _medcalc_grader(answer: str) -> str:
    return "range" if answer.lstrip().startswith("[") else "date"


def grade_choice(response: str, answer: str) -> bool:
    """Equality of one letter."""
    return grade(response, answer, "choice").correct


def grade_code(response: str, answer: str, run_generated_code: bool = False) -> bool:
    """Whether the program in `response` passes the tests in `answer` (`evaluation.graders.code`), in the sandbox.

    Raises ValueError without `run_generated_code` and for an answer that holds no tests, RuntimeError where the kernel
    offers no sandbox.
    """
    from evaluation.graders.code import grade_code as judge

    return judge(response, answer, run_generated_code=run_generated_code).correct


def has_boxed_answer(response: str, answer: str) -> bool:
    r"""Format alone: the response ends its reasoning with exactly one \boxed{...} that is not empty."""
    found = extract_boxed(response)
    return len(found) == 1 and bool(found[0])


def matches_format(response: str, answer: str, pattern: str) -> bool:
    """Format alone: the whole response matches the regular expression `pattern` (dot matches line ends)."""
    return re.fullmatch(pattern, response, re.DOTALL) is not None


REWARDS: dict[str, Callable[..., bool]] = {
    "math": grade_math,
    "boxed": grade_boxed,
    "exact": grade_exact,
    "numeric": grade_numeric,
    "date": grade_date,
    "range": grade_range,
    "medcalc": grade_medcalc,
    "choice": grade_choice,
    "code": grade_code,
    "has_boxed_answer": has_boxed_answer,
    "format": matches_format,
}
# These run inside a pool worker already: they name a grader instead of asking a second pool.
_GRADERS = ("math", "boxed", "exact", "numeric", "date", "range", "medcalc", "choice", "code")


def load_reward(name: str, settings: Mapping[str, Any]) -> Callable[..., bool | float]:
    """The reward called `name`: one of `REWARDS` or a dotted path. Raises ValueError for an unknown name or settings
    that are not keyword arguments of it."""
    import inspect

    if name in REWARDS:
        function = REWARDS[name]
    else:
        module, _, attribute = name.rpartition(".")
        if not module:
            raise ValueError(f"rl.reward.name: {name!r} is not one of {', '.join(sorted(REWARDS))} or a dotted path")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # whatever the user's module raises when it is imported
            raise ValueError(f"rl.reward.name: cannot import {name!r}: {error}") from error
        if not callable(found):
            raise ValueError(f"rl.reward.name: {name!r} is a {type(found).__name__}; name a function")
        function = cast(Callable[..., bool | float], found)
    try:
        inspect.signature(function).bind("response", "answer", **settings)
    except TypeError as error:
        raise ValueError(f"rl.reward.settings: {dict(settings)} do not fit {name}: {error}") from error
    if name == "code" and settings.get("run_generated_code") is not True:
        raise ValueError(
            "rl.reward.settings: the reward code runs programs that the model wrote, in the sandbox; "
            "set rl.reward.settings.run_generated_code=true to allow it"
        )
    return function


def call_reward(name: str, response: str, answer: str, settings: dict[str, Any]) -> bool | float:
    """Run a reward in a pool worker; the result must be a bool or a finite float."""
    if name in _GRADERS:
        raise AssertionError(f"{name} is a grader and has its own way into the pool")
    value: Any = load_reward(name, settings)(response, answer, **settings)
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


def _pool_call(reward: str, response: str, answer: str, settings: Mapping[str, Any]) -> tuple:
    """Function and arguments for the grading pool; `settings` become plain JSON."""
    if reward in _GRADERS:
        grader = f"numeric:{settings['tolerance']}" if "tolerance" in settings else reward
        if reward == "medcalc":
            grader = _medcalc_grader(answer)
        run_generated_code = settings.get("run_generated_code") is True
        return "evaluation.grading.pool:grade_as_json", response, answer, grader, run_generated_code
    return "rl_stage.rewards:call_reward", reward, response, answer, {str(k): v for k, v in settings.items()}


def _time_limit(reward: str, timeout: float) -> float:
    """Seconds of one response in the pool: a program's own limit is the sandbox's, and one that reaches it is wrong."""
    from evaluation.graders.code import TIMEOUT_SECONDS as CODE_TIMEOUT_SECONDS

    return max(timeout, CODE_TIMEOUT_SECONDS) if reward == "code" else timeout


def _scored(reward: str, outcome: Outcome, correct: float, wrong: float) -> Scored:
    """What a pool's outcome is worth: a bool is `correct` or `wrong`, a float is the score itself."""
    status, value = outcome.status, outcome.value
    if status == "ok" and isinstance(value, dict):
        if "bad_reference" in value:
            status, value = "bad_reference", value["bad_reference"]
        else:
            status, value = value["status"], value["correct"]
    if status not in ("ok", "no_answer"):
        _log_failure(reward, status, str(value))
        return Scored(wrong, False, failed=True)
    if isinstance(value, bool):
        return Scored(correct if value else wrong, value, no_answer=status == "no_answer")
    return Scored(float(value), value >= correct)


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
    from evaluation.grading import default_pool

    call = _pool_call(reward, solution_str, str(ground_truth), settings)
    outcome = await asyncio.wrap_future(default_pool().submit(*call, timeout_seconds=_time_limit(reward, timeout)))
    result = _scored(reward, outcome, correct, wrong)
    return {
        "score": result.score,
        "acc": float(result.correct),
        "no_answer": float(result.no_answer),
        "failed": float(result.failed),
    }


def score_many(
    reward: SimpleNamespace, pairs: Sequence[tuple[str, str]], progress: Callable[[int], None]
) -> list[Scored]:
    """Score (response, answer) pairs with the settings `rl.reward`; `progress(done)` is called as they finish."""
    from evaluation.grading import default_pool

    pool = default_pool()
    futures = []
    for response, answer in pairs:
        call = _pool_call(reward.name, response, answer, reward.settings)
        futures.append(pool.submit(*call, timeout_seconds=_time_limit(reward.name, reward.timeout)))
    scored = []
    for future in futures:
        scored.append(_scored(reward.name, future.result(), reward.correct, reward.wrong))
        progress(len(scored))
    return scored


@lru_cache(maxsize=64)
def _log_failure(reward: str, status: str, detail: str) -> None:
    """Say each kind of failure once in this process; the metrics count them all."""
    logger.warning("reward %s failed: %s %s", reward, status, detail)
