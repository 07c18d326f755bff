"""Text: equal to the reference, or of a form alone."""

from __future__ import annotations

import re
import unicodedata

from common.errors import ConfigError
from evaluation.graders.contract import Grade, Grader
from evaluation.graders.extraction import after_thoughts, extract_answer, extract_boxed

_AROUND = "$*_`'\"\u201c\u201d"
# What an announced answer goes on with: "Paris, not Lyon", "Paris because ...".
GOES_ON = re.compile(r"\s*[,;(]?\s*\b(?:not|rather than|instead of|because|since)\b.*|!+\s*$", re.DOTALL)


def _grade_exact(response: str, answer: str, _: str) -> Grade:
    response = after_thoughts(response)
    found = extract_answer(response)
    if found is None:
        found = response
    if not found.strip():
        return Grade(False, "no_answer")
    expected = _folded(answer)
    return Grade(expected in (_folded(found), _folded(GOES_ON.sub("", found))), "ok")


def _folded(text: str) -> str:
    """Without case, spaces that part nothing, quotes, bold and a point at the end.

    Letters are composed (NFC): an accent as a sign of its own spells the same word. Nothing else is folded: a
    full-width digit or a ligature is another text.
    """
    text = unicodedata.normalize("NFC", text).strip().strip(_AROUND).strip().rstrip(".").strip(_AROUND)
    wrapped = re.fullmatch(r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|mbox)\s*\{([^{}]*)\}\.?", text)
    return " ".join((wrapped[1] if wrapped else text).strip().rstrip(".").split()).casefold()


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


exact = Grader("exact", _grade_exact, version=2)
# The response ends its reasoning with exactly one box, which is not empty.
has_boxed_answer = Grader("has_boxed_answer", _has_boxed_answer)
# The whole response matches the pattern; its dot matches line ends.
form = Grader("format", _matches_format, check=_check_pattern)
