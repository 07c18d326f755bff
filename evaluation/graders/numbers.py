"""Numbers: equal within a tolerance, or within limits."""

from __future__ import annotations

import re
from fractions import Fraction

from common.errors import ConfigError
from evaluation.graders.contract import Grade, Grader
from evaluation.graders.extraction import after_thoughts, extract_answer
from evaluation.graders.formulas import symbolic
from evaluation.graders.formulas.structure import Term, read

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
# Not the digits of names, subscripts and powers: CHA2DS2-VASc, x_1, m^2.
_START = r"(?<![A-Za-z0-9_^.])(?<!_\{)(?<!\^\{)(?<![A-Za-z]/)"
_TEN = r"\s*(?:\\times|\\cdot|[x\u00d7*·])\s*10\s*(?:\^\s*\{?\s*\(?\s*[-+]?\d+|[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)"
NUMBER = re.compile(
    rf"{_START}(?P<sign>(?<![\w)\]}}])[-+]\s?)?(?:"
    rf"(?P<whole>\d+)?\s*\\[dt]?frac\s*\{{\s*(?P<above>{_DECIMAL})\s*\}}\s*\{{\s*(?P<below>{_DECIMAL})\s*\}}"
    r"|(?P<mixed>\d+)\s+(?P<upper>\d+)\s*/\s*(?P<lower>\d+)"
    r"|(?P<base>\d+(?:\.\d+)?)\s*\^\s*[{(]*\s*(?P<exponent>[-+]?\d+)"
    rf"|(?P<number>{_DECIMAL})(?P<power>[eE][-+]?\d+(?![\w.])|{_TEN})?"
    r"(?:\s*/\s*(?P<divisor>\d+(?:\.\d+)?)(?![\w/]))?)"
)
# "17.1 - 18.9" are two numbers; \frac34 is one.
_FROM_TO = re.compile(r"(?<=[\d%])\s+-\s+(?=[\d.])")
_SHORT_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{(\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))")
# What a formula holds that is more than a number.
_FORMULA = re.compile(r"\\(?:sqrt|pi|sin|cos|tan|ln|log|cdot|times)|√|π|\d\s*[+*!^]")
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
LARGEST_EXPONENT = 10_000
# Python reads no integer of more; nobody's answer has them.
LONGEST_DIGITS = 4_000
DIGITS = 50


def _grade_numeric(response: str, answer: str, argument: str) -> Grade:
    expected = _numbers(answer)
    if len(expected) != 1:
        raise ConfigError(f"answer: {answer!r} is not one number, as the numeric grader needs")
    value = _value(response)
    if value is None:
        return Grade(False, "no_answer")
    tolerance = Fraction(argument) if argument else Fraction(1, 10**6)
    return Grade(abs(value - expected[0]) <= tolerance * abs(expected[0]), "ok")


def _grade_range(response: str, answer: str, _: str) -> Grade:
    limits = _numbers(answer)
    if len(limits) != 2 or limits[0] > limits[1]:
        raise ConfigError(f"answer: {answer!r} is not a range, as the range grader needs; write it as [low, high]")
    value = _value(response)
    if value is None:
        return Grade(False, "no_answer")
    return Grade(limits[0] <= value <= limits[1], "ok")


def _value(response: str) -> Fraction | None:
    """The number that a response gives: behind the last "=" of its answer the first; in free text the last."""
    found = extract_answer(response)
    if found is None:
        numbers = _numbers(_last_statement(after_thoughts(response)))
        return numbers[-1] if numbers else None
    # A boxed or announced answer leads with its number: "5.2 mg/dL in 24 h".
    for part in reversed(re.split(r"(?<![<>!])=|≈|\\approx|\\simeq", found)):
        computed = _computed(part) if _FORMULA.search(part) else None
        if computed is not None:
            return computed
        numbers = _numbers(part)
        if numbers:
            return numbers[0]
    return None


def _computed(text: str) -> Fraction | None:
    """The value of a formula, 2\\sqrt{3} or 3 + 4, to fifty digits; None where it is none."""
    value = read(text)
    if not isinstance(value, Term):
        return None
    return value.number.value if value.number is not None else symbolic.approximate(value.body, DIGITS)


def _last_statement(text: str) -> str:
    """The last line of numbers; of "score = 4 (2 for age)" what stands before the bracket."""
    lines = [line for line in text.splitlines() if _numbers(line)]
    if not lines:
        return ""
    _, equals, tail = lines[-1].rpartition("=")
    if equals and _numbers(tail):
        return tail.partition("(")[0] if _numbers(tail.partition("(")[0]) else tail
    return lines[-1]


def _numbers(text: str) -> list[Fraction]:
    text = text.replace("\\,", "").replace("\\!", "").replace("\\%", "%").replace("{,}", ",")
    text = text.replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "-").replace("\\left", "").replace("\\right", "")
    text = _SHORT_FRACTION.sub(r"\\frac{\1\2}{\3\4}", _FROM_TO.sub(" , ", text))
    found = []
    for match in NUMBER.finditer(text):
        value = _exact(match)
        if value is not None:
            found.append(-value if (match["sign"] or "").startswith("-") else value)
    return found


def _exact(match: re.Match[str]) -> Fraction | None:
    if len(match[0]) > LONGEST_DIGITS:
        return None
    if match["above"]:
        below = _plain(match["below"])
        return None if below == 0 else int(match["whole"] or 0) + _plain(match["above"]) / below
    if match["mixed"]:
        lower = int(match["lower"])
        return None if lower == 0 else int(match["mixed"]) + Fraction(int(match["upper"]), lower)
    if match["base"]:
        number, exponent = Fraction(match["base"]), int(match["exponent"])
        if abs(exponent) > LARGEST_EXPONENT // len(match["base"]) or (number == 0 and exponent < 0):
            return None
        return number**exponent
    value = _plain(match["number"])
    if match["power"]:
        power = re.sub(r"^\s*(?:\\times|\\cdot|[x\u00d7*·])\s*10", "", match["power"].translate(_RAISED))
        exponent = int(power.lstrip("eE^{( \t\n"))
        if abs(exponent) > LARGEST_EXPONENT:
            return None
        value *= Fraction(10) ** exponent
    if match["divisor"]:
        divisor = Fraction(match["divisor"])
        return None if divisor == 0 else value / divisor
    return value


def _plain(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def _check_tolerance(argument: str) -> None:
    try:
        allowed = not argument or Fraction(argument) >= 0
    except (ValueError, ZeroDivisionError):
        allowed = False
    if not allowed:
        raise ConfigError(f"the tolerance is {argument!r}; allowed: a number from 0")


numeric = Grader("numeric", _grade_numeric, version=2, check=_check_tolerance)
within = Grader("range", _grade_range, version=2)
