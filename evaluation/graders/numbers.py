"""Numbers: equal within a tolerance, or within limits."""

from __future__ import annotations

import math
import re

from common.errors import ConfigError
from evaluation.graders.contract import Grade, Grader
from evaluation.graders.extraction import extract_answer

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?")


def _grade_numeric(response: str, answer: str, argument: str) -> Grade:
    expected = _numbers(answer)
    if len(expected) != 1:
        raise ConfigError(f"answer: {answer!r} is not one number, as the numeric grader needs")
    found = extract_answer(response)
    numbers = _numbers(found if found is not None else response)
    if not numbers:
        return Grade(False, "no_answer")
    tolerance = float(argument) if argument else 1e-6
    # A boxed or announced answer leads with its number ("5.2 mg/dL in 24 h"); free text ends with it.
    value = numbers[0] if found is not None else numbers[-1]
    return Grade(abs(value - expected[0]) <= tolerance * abs(expected[0]), "ok")


def _grade_range(response: str, answer: str, _: str) -> Grade:
    limits = _numbers(answer)
    if len(limits) != 2 or limits[0] > limits[1]:
        raise ConfigError(f"answer: {answer!r} is not a range, as the range grader needs; write it as [low, high]")
    found = extract_answer(response)
    numbers = _numbers(found if found is not None else response)
    if not numbers:
        return Grade(False, "no_answer")
    value = numbers[0] if found is not None else numbers[-1]
    return Grade(limits[0] <= value <= limits[1], "ok")


def _numbers(text: str) -> list[float]:
    text = text.replace("\\,", "").replace("\\%", "%").replace("{,}", ",").replace("\N{MINUS SIGN}", "-")
    return [float(part.replace(",", "")) for part in NUMBER.findall(text) if any(c.isdigit() for c in part)]


def _check_tolerance(argument: str) -> None:
    if argument and not 0 <= float(argument) < math.inf:
        raise ConfigError(f"the tolerance is {argument!r}; allowed: a number from 0")


numeric = Grader("numeric", _grade_numeric, check=_check_tolerance)
within = Grader("range", _grade_range)
