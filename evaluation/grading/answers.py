"""Graders as pure functions of (response, reference answer). They may be slow or hang: `pool.py` bounds them."""

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

Status = Literal["ok", "no_answer", "timeout", "error", "crash"]

# math-verify's patterns are quadratic in the worst case; an unboxed final answer stands at the end.
TAIL_CHARACTERS = 5_000
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# Between the boxes of one answer: "$\boxed{1}$ and $\boxed{2}$", "x = \boxed{1}, \quad y = \boxed{2}".
GAP = r"(?:[\s$,;.]|\\q?quad|\\[,;: ()\[\]])*"
BOX_SEPARATOR = re.compile(
    rf"{GAP}(?:\\text\s*\{{\s*)?(?:and|or)?(?:\s*\}})?{GAP}"
    rf"|{GAP}\\text\s*\{{[^{{}}]{{0,60}}\b(?:and|or)\s*\}}{GAP}"
    rf"|{GAP}(?:\\text\s*\{{\s*)?(?:and|or|,)(?:\s*\}})?{GAP}[A-Za-z](?:_\{{?\w{{1,3}}\}}?)?\s*=\s*"
)
ANSWER_TAGS = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
ANSWER_PHRASE = re.compile(r"(?i:answer)\s*(?:(?i:is)\s*:?|:)\s*(.+)")
FINAL_ANSWER = re.compile(r"(?i:final answer is)[\s:]*\$?[^$\n]{1,200}\$?")
NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?")
PERCENT = re.compile(r"(-?[0-9.,]+)\s*(?:\\?%|(?:\\text\s*\{\s*)?(?:percent(?:age)?|pct)\s*\}?)")
INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
DECIMAL = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,18})?")
DECIMAL_COMMA = re.compile(r"-?[0-9]+,[0-9]{1,2}")
FRACTION = re.compile(r"(-?)\\frac\{([0-9]{1,18})\}\{([0-9]{1,18})\}")
SIZING = re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])|\\[!,;:]")
IDLE_SPACE = re.compile(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])")
CHOICE = re.compile(r"\(?\b([A-Z])\b\)?")
LABEL = re.compile(r"\(?\b([A-Z])[.):](?=\s|$)")


@dataclass(frozen=True)
class Grade:
    """The verdict on one response.

    status: `ok` (judged), `no_answer` (the response holds no answer to judge), `timeout`, `error` (the grader raised)
    or `crash` (the grading process died). The last three are failures of grading: count them, never average them away.
    """

    correct: bool
    status: Status

    @property
    def failed(self) -> bool:
        """True where no verdict was reached."""
        return self.status in ("timeout", "error", "crash")


def extract_boxed(response: str) -> list[str]:
    r"""Contents of the last \boxed{...} of a response, or of the last few where only "and", "or", commas part them."""
    spans: list[tuple[int, int, str]] = []
    position = 0
    while (match := BOX.search(response, position)) is not None:
        depth, end = 1, match.end()
        while end < len(response) and depth:
            if response[end] == "\\":
                end += 1
            elif response[end] == "{":
                depth += 1
            elif response[end] == "}":
                depth -= 1
            end += 1
        if depth:
            break
        spans.append((match.start(), end, response[match.end() : end - 1].strip()))
        position = end
    run: list[tuple[int, int, str]] = []
    for span in reversed(spans):
        if run and not BOX_SEPARATOR.fullmatch(response, span[1], run[-1][0]):
            break
        run.append(span)
    return [content for _, _, content in reversed(run)]


def extract_answer(response: str) -> str | None:
    r"""The final answer as text, or None: the last \boxed{...}; else the last <answer>...</answer>, of which the field
    "answer" where it is a JSON object; else what follows the last "answer is" or "Answer:"."""
    boxed = extract_boxed(response)
    if boxed:
        return ", ".join(boxed)
    tagged = ANSWER_TAGS.findall(response)
    if tagged:
        try:
            found = json.loads(tagged[-1])
        except ValueError:
            found = None
        return str(found["answer"]) if isinstance(found, dict) and "answer" in found else tagged[-1].strip()
    phrases = ANSWER_PHRASE.findall(response)
    return phrases[-1].strip().rstrip(".").strip() if phrases else None


def grade_answer(response: str, answer: str, grader: str = "math", *, run_generated_code: bool = False) -> Grade:
    """Judge `response` against the reference `answer`, in this process and without a time limit.

    grader: `boxed` (mathematical equality of the boxed answer; no box, no answer), `math` (the same, but an unboxed
    final answer counts), `exact` (text), `numeric` or `numeric:<relative tolerance>`, `date` (also gestational
    "(weeks, days)" pairs), `choice` (one letter), `range` (a number within the reference's "[low, high]"), `code` (the
    program passes the reference's tests in the sandbox, see `grading.code`; only with run_generated_code). Never raises
    on a response; an exception of the grader is the status `error`. Raises ValueError for an unknown grader, a
    reference that its grader cannot read, or code without run_generated_code.
    """
    function, argument = check_grader(grader)
    if function is _grade_code:
        from evaluation.grading.code import grade_code

        return grade_code(response, answer, run_generated_code=run_generated_code)
    return function(response, answer, argument)


def check_grader(grader: str) -> tuple[Callable[[str, str, str], Grade], str]:
    """The function and argument behind a grader's name. Raises ValueError, naming the graders, for an unknown one."""
    name, _, argument = grader.partition(":")
    if name not in GRADERS or (argument and name not in ("numeric", "format")):
        raise ValueError(f"grader: {grader!r} is not one of {', '.join(sorted(GRADERS))} or numeric:<tolerance>")
    if argument and name == "numeric":
        float(argument)
    return GRADERS[name], argument


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
        raise ValueError("answer: the reference answer is empty; drop the problem or give its answer")
    return (text,)


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


def _grade_numeric(response: str, answer: str, argument: str) -> Grade:
    expected = _numbers(answer)
    if len(expected) != 1:
        raise ValueError(f"answer: {answer!r} is not one number, as the numeric grader needs")
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
        raise ValueError(f"answer: {answer!r} is not a range, as the range grader needs; write it as [low, high]")
    found = extract_answer(response)
    numbers = _numbers(found if found is not None else response)
    if not numbers:
        return Grade(False, "no_answer")
    value = numbers[0] if found is not None else numbers[-1]
    return Grade(limits[0] <= value <= limits[1], "ok")


def _numbers(text: str) -> list[float]:
    text = text.replace("\\,", "").replace("\\%", "%").replace("{,}", ",").replace("\N{MINUS SIGN}", "-")
    return [float(part.replace(",", "")) for part in NUMBER.findall(text) if any(c.isdigit() for c in part)]


def _grade_date(response: str, answer: str, _: str) -> Grade:
    expected = _date(answer)
    if expected is None:
        raise ValueError(f"answer: {answer!r} is not a date, as the date grader needs; write it as YYYY-MM-DD")
    found = extract_answer(response)
    value = _date(found if found is not None else response)
    if value is None:
        return Grade(False, "no_answer")
    return Grade(value == expected, "ok")


MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
ISO_DATE = re.compile(r"\b(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})\b")
US_DATE = re.compile(r"\b(\d{1,2})[-/.](\d{1,2})[-/.](\d{4})\b")
MONTH_FIRST = re.compile(r"\b([A-Za-z]{3,9})\.?\s+(\d{1,2})(?:st|nd|rd|th)?,?\s+(\d{4})\b")
DAY_FIRST = re.compile(r"\b(\d{1,2})(?:st|nd|rd|th)?\s+(?:of\s+)?([A-Za-z]{3,9})\.?,?\s+(\d{4})\b")
# Each pattern with the positions of year, month and day among its groups.
DATES = ((ISO_DATE, (0, 1, 2)), (US_DATE, (2, 0, 1)), (MONTH_FIRST, (2, 0, 1)), (DAY_FIRST, (2, 1, 0)))
WEEKS_DAYS = re.compile(r"(\d+)\s*(?:weeks?)\W+(?:and\W+)?(\d+)\s*(?:days?)")


def _date(text: str) -> tuple[int, ...] | None:
    """The last date in a text as (year, month, day), numeric dates without a leading year read as month/day/year; or
    (weeks, days)."""
    found: list[tuple[int, tuple[int, ...]]] = []
    for pattern, order in DATES:
        for match in pattern.finditer(text):
            year, month, day = (match.groups()[i] for i in order)
            if not month.isdigit():
                name = month[:3].lower()
                if name not in MONTHS:
                    continue
                month = str(MONTHS.index(name) + 1)
            if 1 <= int(month) <= 12 and 1 <= int(day) <= 31:
                found.append((match.start(), (int(year), int(month), int(day))))
    found += [(match.start(), (int(match[1]), int(match[2]))) for match in WEEKS_DAYS.finditer(text)]
    return max(found)[1] if found else None


def _grade_choice(response: str, answer: str, _: str) -> Grade:
    expected = answer.strip().strip("()").upper()
    if not re.fullmatch("[A-Z]", expected):
        raise ValueError(f"answer: {answer!r} is not one letter, as the choice grader needs")
    found = extract_answer(response)
    text = (found if found is not None else response).replace("\\text{", "").replace("}", "").strip()
    letters = CHOICE.findall(text)
    if not letters:
        return Grade(False, "no_answer")
    # "D. It cannot be A or B": a label before the reasons is the answer, unless other options are labelled too.
    leads = found is not None or (LABEL.match(text) is not None and len(set(LABEL.findall(text))) == 1)
    return Grade((letters[0] if leads else letters[-1]) == expected, "ok")


def _grade_code(response: str, answer: str, _: str) -> Grade:
    raise ValueError("grader: code runs through grade_answer, which asks for leave to run it")


def _grade_medcalc(response: str, answer: str, _: str) -> Grade:
    """MedCalc-Bench: a reference "[low, high]" is judged as a range, any other as a date or "(weeks, days)" pair."""
    return (_grade_range if answer.lstrip().startswith("[") else _grade_date)(response, answer, "")


def _has_boxed_answer(response: str, answer: str, _: str) -> Grade:
    found = extract_boxed(response)
    return Grade(len(found) == 1 and bool(found[0]), "ok")


def _matches_format(response: str, answer: str, argument: str) -> Grade:
    return Grade(re.fullmatch(argument, response, re.DOTALL) is not None, "ok")


GRADERS: dict[str, Callable[[str, str, str], Grade]] = {
    "boxed": _grade_boxed,
    "math": _grade_math,
    "exact": _grade_exact,
    "numeric": _grade_numeric,
    "date": _grade_date,
    "choice": _grade_choice,
    "range": _grade_range,
    "code": _grade_code,
    "medcalc": _grade_medcalc,
    "has_boxed_answer": _has_boxed_answer,
    "format": _matches_format,
}
