"""Mathematical equality, by text where that decides and by math-verify where it does not."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from common.errors import ConfigError
from evaluation.graders.contract import Grade, Grader
from evaluation.graders.extraction import BOX, extract_boxed

# math-verify's patterns are quadratic in the worst case; an unboxed final answer stands at the end.
TAIL_CHARACTERS = 5_000
FINAL_ANSWER = re.compile(r"(?i:final answer is)[\s:]*\$?[^$\n]{1,200}\$?")
PERCENT = re.compile(r"(-?[0-9.,]+)\s*(?:\\?%|(?:\\text\s*\{\s*)?(?:percent(?:age)?|pct)\s*\}?)")
INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
DECIMAL = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,18})?")
DECIMAL_COMMA = re.compile(r"-?[0-9]+,[0-9]{1,2}")
FRACTION = re.compile(r"(-?)\\frac\{([0-9]{1,18})\}\{([0-9]{1,18})\}")
SIZING = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])|\\[!,;:]")
IDLE_SPACE = re.compile(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])")


def _grade_boxed(response: str, answer: str, _: str) -> Grade:
    boxed = [_bare(content) for content in extract_boxed(response)]
    if not boxed:
        return Grade(False, "no_answer")
    if len(boxed) == 1:
        verdict = _compare_text(boxed[0], answer)
        if verdict is not None:
            return Grade(verdict, "ok")
        percent = PERCENT.fullmatch(boxed[0])
        if percent is not None:
            # math-verify takes 10% for 10 and for 0.1, but only outside of LaTeX.
            return _compare_math(f"{percent[1]}%", answer)
    return _compare_math(_delimited(boxed), answer)


def _delimited(boxed: list[str]) -> str:
    """The contents of an answer's boxes as math-verify reads them."""
    # A bare % is a comment in TeX, and models write it all the same.
    contents = [re.sub(r"(?<!\\)%", r"\\%", content) for content in boxed]
    return " and ".join(f"$\\boxed{{{content}}}$" for content in contents)


def _grade_math(response: str, answer: str, _: str) -> Grade:
    if extract_boxed(response):
        # Some models box a step and announce the result after it.
        announced = FINAL_ANSWER.search(response, [match.start() for match in BOX.finditer(response)][-1])
        if announced is not None:
            verdict = _compare_math(announced[0], answer)
            if verdict.status != "no_answer":
                return verdict
        return _grade_boxed(response, answer, "")
    return _compare_math(response[-TAIL_CHARACTERS:], answer)


def _bare(latex: str) -> str:
    """Without currency signs, which math-verify would take for delimiters, and a backslash at the end."""
    return latex.replace("\\$", "").strip().removesuffix("\\").strip()


def _compare_text(found: str, answer: str) -> bool | None:
    """The verdict where text alone decides it, hundreds of times faster than a LaTeX parser; else None."""
    found, answer = _plain(found), _plain(answer)
    if found == answer:
        return True
    if INTEGER.fullmatch(found) and INTEGER.fullmatch(answer):
        return int(found) == int(answer)
    values = [_rational(text) for text in (found, answer)]
    # Unequal ones are not decided here: how far a decimal may be off is math-verify's rule.
    return True if values[0] is not None and values[0] == values[1] else None


def _plain(latex: str) -> str:
    """Without spaces that part nothing, sizes of brackets and of fractions."""
    latex = SIZING.sub("", latex.strip().strip("$")).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return IDLE_SPACE.sub("", latex)


def _rational(text: str) -> Fraction | None:
    match = FRACTION.fullmatch(text)
    if match is not None:
        sign, numerator, denominator = match.groups()
        return None if int(denominator) == 0 else Fraction(int(sign + numerator), int(denominator))
    return Fraction(text) if DECIMAL.fullmatch(text) else None


@lru_cache(maxsize=1024)
def _compare_math(prediction: str, answer: str) -> Grade:
    """The verdict of math-verify. Kept: most of the responses to one problem end in the same few answers."""
    import math_verify

    # math-verify bounds itself with SIGALRM, which raises outside the main thread and is swallowed as "wrong"; the
    # pool bounds it instead. It warns about that once per process.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    gold = _parse_reference(answer)
    try:
        found = math_verify.parse(prediction, parsing_timeout=None, raise_on_error=True)  # type: ignore[arg-type]
    except Exception:
        return Grade(False, "error")
    if not found:
        return Grade(False, "no_answer")
    raised = False
    for expected in _comparable(gold):
        for candidate in _comparable(found):
            try:
                if math_verify.verify(expected, candidate, timeout_seconds=None, raise_on_error=True):
                    return Grade(True, "ok")
            except Exception:
                raised = True
    return Grade(False, "error" if raised else "ok")


def _comparable(values: Sequence) -> list:
    """Without a division by zero, which "12:00" is to a LaTeX parser and which nothing compares with."""
    import sympy

    return [value for value in values if value is not sympy.zoo and value is not sympy.nan]


@lru_cache(maxsize=4096)
def _parse_reference(answer: str) -> tuple:
    import math_verify
    from sympy import Float

    answer = _bare(answer)
    percent = PERCENT.fullmatch(answer.strip("$ "))
    if percent is not None:
        return tuple(math_verify.parse(f"{percent[1]}%", parsing_timeout=None))  # type: ignore[arg-type]
    boxed = extract_boxed(answer)
    delimited = any(mark in answer for mark in ("$", "\\boxed", "\\(", "\\["))
    for text in (answer,) if delimited else (f"${answer}$", answer):
        found = math_verify.parse(text, parsing_timeout=None)  # type: ignore[arg-type]
        if any(not isinstance(item, str) for item in found):
            # math-verify takes all boxes together; the last run of them may be what is meant.
            last = math_verify.parse(_delimited(boxed), parsing_timeout=None) if boxed else []  # type: ignore[arg-type]
            decimal = [Float(answer.replace(",", "."))] if DECIMAL_COMMA.fullmatch(answer) else []
            return (*found, *last, *decimal)
    text = answer.strip().strip("$").strip()
    if not text:
        raise ConfigError("answer: the reference answer is empty; drop the problem or give its answer")
    return (text,)


# `boxed`: no box, no answer. `math`: an unboxed final answer counts too.
boxed = Grader("boxed", _grade_boxed)
math = Grader("math", _grade_math)
