"""Text: equal to the reference, or of a form alone."""

from __future__ import annotations

import re

from common.errors import ConfigError
from evaluation.graders.contract import Grade, Grader
from evaluation.graders.extraction import extract_answer, extract_boxed


def _grade_exact(response: str, answer: str, _: str) -> Grade:
    found = extract_answer(response)
    if found is None:
        found = response
    if not found.strip():
        return Grade(False, "no_answer")
    return Grade(_folded(found) == _folded(answer), "ok")


def _folded(text: str) -> str:
    text = text.strip().strip("$").strip().rstrip(".")
    if text.startswith("\\text{") and text.endswith("}"):
        text = text[len("\\text{") : -1]
    return " ".join(text.split()).casefold()


def _has_boxed_answer(response: str, answer: str, _: str) -> Grade:
    found = extract_boxed(response)
    return Grade(len(found) == 1 and bool(found[0]), "ok")


def _matches_format(response: str, answer: str, argument: str) -> Grade:
    return Grade(re.fullmatch(argument, response, re.DOTALL) is not None, "ok")


def _check_pattern(argument: str) -> None:
    if not argument:
        raise ConfigError("needs a regular expression, format:<pattern>")
    try:
        re.compile(argument)
    except re.error as error:
        raise ConfigError(f"not a regular expression ({error})") from None


exact = Grader("exact", _grade_exact)
# The response ends its reasoning with exactly one box, which is not empty.
has_boxed_answer = Grader("has_boxed_answer", _has_boxed_answer)
# The whole response matches the pattern; its dot matches line ends.
form = Grader("format", _matches_format, check=_check_pattern)
