"""Rewards: pure functions of (response, reference answer), each usable alone, each bounded in time when RL calls it.

A reward of one's own is a function `(response: str, answer: str, **settings) -> bool | float` named by its dotted path
in `rl.reward.name`. RL runs every reward in a pool of subprocesses that kills what hangs or crashes.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from evaluation.grading import extract_boxed, grade

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


def grade_choice(response: str, answer: str) -> bool:
    """Equality of one letter."""
    return grade(response, answer, "choice").correct


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
    "choice": grade_choice,
    "has_boxed_answer": has_boxed_answer,
    "format": matches_format,
}
# These run inside a pool worker already: they name a grader instead of asking a second pool.
_GRADERS = ("math", "boxed", "exact", "numeric", "date", "choice")


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
            function = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"rl.reward.name: cannot import {name!r}: {error}") from error
    try:
        inspect.signature(function).bind("response", "answer", **settings)
    except TypeError as error:
        raise ValueError(f"rl.reward.settings: {dict(settings)} do not fit {name}: {error}") from error
    return function


def call_reward(name: str, response: str, answer: str, settings: dict[str, Any]) -> bool | float:
    """Run a reward in a pool worker; the result must be a bool or a finite float."""
    if name in _GRADERS:
        raise AssertionError(f"{name} is a grader and has its own way into the pool")
    value = load_reward(name, settings)(response, answer, **settings)
    if isinstance(value, bool):
        return value
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"the reward is {value}")
    return value


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

    A bool becomes `correct` or `wrong`, a float is the score itself (accurate where it reaches `correct`). Returns
    score, acc (0 or 1), no_answer (0 or 1) and failed (0 or 1: raised, timed out or crashed; the score is `wrong`).
    """
    from evaluation.grading import default_pool

    settings = json.loads(json.dumps({str(key): value for key, value in settings.items()}))
    if reward in _GRADERS:
        grader = f"numeric:{settings['tolerance']}" if settings.get("tolerance") is not None else reward
        call = ("evaluation.grading.pool:grade_as_json", solution_str, ground_truth, grader)
    else:
        call = ("rl_stage.rewards:call_reward", reward, solution_str, ground_truth, settings)
    outcome = await asyncio.wrap_future(default_pool().submit(*call, timeout_seconds=timeout))
    status, value = outcome.status, outcome.value
    if status == "ok" and isinstance(value, dict):
        status, value = ("bad_reference", value["bad_reference"]) if "bad_reference" in value else (
            value["status"],
            value["correct"],
        )
    if status not in ("ok", "no_answer"):
        _log_failure(reward, status, str(value))
        return {"score": wrong, "acc": 0.0, "no_answer": 0.0, "failed": 1.0}
    if isinstance(value, bool):
        score, accuracy = (correct, 1.0) if value else (wrong, 0.0)
    else:
        score, accuracy = float(value), float(value >= correct)
    return {"score": score, "acc": accuracy, "no_answer": float(status == "no_answer"), "failed": 0.0}


@lru_cache(maxsize=64)
def _log_failure(reward: str, status: str, detail: str) -> None:
    """Say each kind of failure once in this process; the metrics count them all."""
    logger.warning("reward %s failed: %s %s", reward, status, detail)
