"""Mathematical equality: text where that decides, exact values where it does not."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from common.errors import ConfigError
from evaluation.graders.announcements import ADJECTIVES, STATED, any_of
from evaluation.graders.contract import Grade, Grader
from evaluation.graders.extraction import BOX, after_thoughts, boxes, extract_boxed, extract_tagged
from evaluation.graders.formulas.clean import clean
from evaluation.graders.formulas.compare import equal
from evaluation.graders.formulas.locate import announced_words, locate, readable
from evaluation.graders.formulas.structure import Group, Value, Words, read

# math-verify's patterns are quadratic in the worst case; an unboxed final answer stands at the end.
TAIL_CHARACTERS = 5_000
ANNOUNCED = re.compile(rf"(?i:\b(?:{any_of((*ADJECTIVES, 'the'))} )?answer(?: {STATED[0]}\b(?! not\b)|:))")
# "The answer is 42" within a box or tags.
LABEL = re.compile(
    rf"(?i)^\s*(?:the\s+)?(?:{any_of(ADJECTIVES)}\s+)?answer\s*(?:{STATED[0]}\b(?!\s+not\b)\s*:?|[:=])\s*(?=\S)"
)
# Between the boxes of a reference, which somebody wrote as one answer: "\boxed{1} papers and \boxed{2} bins".
REFERENCE_GAP = re.compile(r"(?:\s*[A-Za-z]+){0,2}\s*(?:,|\b(?:and|or)\b)\s*|[^.\w]{0,69}")


def _grade_boxed(response: str, answer: str, _: str) -> Grade:
    """The last box, or the tags behind it."""
    return _grade_marked(after_thoughts(response), answer) or Grade(False, "no_answer")


def _grade_marked(response: str, answer: str) -> Grade | None:
    boxed = extract_boxed(response)
    tagged = extract_tagged(response)
    if tagged is not None and (not boxed or response.lower().rindex("<answer>") > boxes(response)[-1][0]):
        boxed = extract_boxed(tagged) or [tagged]
    if not boxed:
        return None
    if not any(content.strip() for content in boxed):
        return Grade(False, "no_answer")
    return _verdict(tuple(LABEL.sub("", content) for content in boxed), answer)


def _grade_math(response: str, answer: str, _: str) -> Grade:
    response = after_thoughts(response)
    found = boxes(response)
    if found:
        # Some models box a step and announce the result after it.
        announced = list(ANNOUNCED.finditer(response, found[-1][1]))
        if announced:
            value = locate(response[announced[-1].start() :][:TAIL_CHARACTERS])
            if value is not None:
                return _judge(value, answer)
    marked = _grade_marked(response, answer)
    if marked is not None:
        return marked
    return _located(response[-TAIL_CHARACTERS:], answer)


@lru_cache(maxsize=1024)
def _located(response: str, answer: str) -> Grade:
    expected = references(answer)
    response = BOX.sub(" ", response)  # one that does not close
    # A name or a word is announced, or the whole response.
    if isinstance(expected[0], Words) and any(
        equal(expected[0], read(words)) for words in announced_words(response) if words.strip()
    ):
        return Grade(True, "ok")
    value = locate(response)
    return Grade(False, "no_answer") if value is None else _judge(value, answer)


@lru_cache(maxsize=4096)
def _verdict(boxed: tuple[str, ...], answer: str) -> Grade:
    """The verdict on the contents of an answer's boxes. Kept: most responses to one problem end in the same few."""
    try:
        values = [read(content) for content in boxed]
    except Exception:  # whatever a parser does with what a model wrote is no verdict
        return Grade(False, "error")
    joined = values[0] if len(values) == 1 else Group(", ".join(value.text for value in values), "", "", tuple(values))
    return _judge(joined, answer)


def _judge(value: Value, answer: str) -> Grade:
    raised = False
    for expected in references(answer):
        try:
            if equal(expected, value):
                return Grade(True, "ok")
        except Exception:  # sympy raises what it likes; the comparison failed and says nothing
            raised = True
    return Grade(False, "error" if raised else "ok")


@lru_cache(maxsize=4096)
def references(answer: str) -> tuple[Value, ...]:
    """What a reference answer may mean. Raises ConfigError for an empty one."""
    if not clean(answer):
        raise ConfigError("answer: the reference answer is empty; drop the problem or give its answer")
    answer = answer.replace("\\\\boxed", "\\boxed")
    if boxes(answer):
        return tuple(dict.fromkeys(_row(run) for run in (extract_boxed(answer), _reference_run(answer))))
    answer = BOX.sub("", answer)  # a box that does not close
    value = read(answer)
    if not readable(value) and "$" in answer:
        inner = locate(answer)
        if inner is not None:
            return (value, inner)
    return (value,)


def _reference_run(answer: str) -> list[str]:
    run: list[tuple[int, int, str]] = []
    for span in reversed(boxes(answer)):
        if run and not REFERENCE_GAP.fullmatch(answer, span[1], run[-1][0]):
            break
        run.append(span)
    return [content for _, _, content in reversed(run)]


def _row(run: list[str]) -> Value:
    values = tuple(read(content) for content in run)
    return values[0] if len(values) == 1 else Group(", ".join(value.text for value in values), "", "", values)


def _grade_reference(response: str, answer: str, _: str) -> Grade:
    """math-verify's own verdict on the boxed answer: `verify(parse(reference), parse(boxes))`, its defaults."""
    import logging

    import math_verify
    from math_verify import LatexExtractionConfig

    # It bounds itself with SIGALRM, which raises outside the main thread; the pool bounds it. It warns about that.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    if not clean(answer):
        raise ConfigError("answer: the reference answer is empty; drop the problem or give its answer")
    if not boxes(response):
        return Grade(False, "no_answer")
    # `parse` takes None for no time limit and any sequence of kinds; its annotations do not say so.
    formulas: Any = [LatexExtractionConfig()]
    untimed: Any = None
    delimited = any(mark in answer for mark in ("$", "\\boxed", "\\(", "\\["))
    try:
        expected = math_verify.parse(answer if delimited else f"${answer}$", formulas, parsing_timeout=untimed)
        found = math_verify.parse(response[boxes(response)[0][0] :], formulas, parsing_timeout=untimed)
        return Grade(bool(math_verify.verify(expected, found, timeout_seconds=None, raise_on_error=True)), "ok")
    except Exception:
        return Grade(False, "error")


# `boxed`: no box and no <answer>, no answer. `math`: an unboxed final answer counts too. `boxed_reference`: math-verify
# alone, for results of papers that used it.
boxed = Grader("boxed", _grade_boxed, version=2)
math = Grader("math", _grade_math, version=2)
boxed_reference = Grader("boxed_reference", _grade_reference)
