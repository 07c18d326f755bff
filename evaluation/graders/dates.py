"""Dates, however written, and gestational "(weeks, days)" pairs."""

from __future__ import annotations

import re
from datetime import date as date_type

from common.errors import ConfigError
from evaluation.graders.contract import Grade, Grader
from evaluation.graders.extraction import after_thoughts, extract_answer

MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
ISO_DATE = re.compile(r"\b(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})(?!\d)")
COMPACT = re.compile(r"(?<!\d)(\d{4})(\d\d)(\d\d)(?!\d)")
CHINESE = re.compile(r"(\d{4})\s*年\s*(\d{1,2})\s*月\s*(\d{1,2})\s*日")
US_DATE = re.compile(r"\b(\d{1,2})[-/.](\d{1,2})[-/.](\d{4}|\d{2})(?![\d/.-]*\d)")
MONTH_FIRST = re.compile(r"\b([A-Za-z]{3,9})\.?[\s/-]+(\d{1,2})(?:st|nd|rd|th)?,?[\s/-]+(\d{4})\b")
YEAR_MONTH = re.compile(r"\b(\d{4}),?\s+([A-Za-z]{3,9})\.?\s+(\d{1,2})(?:st|nd|rd|th)?\b")
DAY_FIRST = re.compile(r"\b(\d{1,2})(?:st|nd|rd|th)?[\s/-]+(?:of\s+)?([A-Za-z]{3,9})\.?,?[\s/-]+(\d{4})\b")
# Each pattern with the positions of year, month and day among its groups.
DATES = (
    (ISO_DATE, (0, 1, 2)),
    (US_DATE, (2, 0, 1)),
    (MONTH_FIRST, (2, 0, 1)),
    (DAY_FIRST, (2, 1, 0)),
    (YEAR_MONTH, (0, 1, 2)),
    (CHINESE, (0, 1, 2)),
    (COMPACT, (0, 1, 2)),
)
_WEEKS, _DAYS = r"(?:-?\s*(?:weeks?|wks?|w)\b)", r"(?:-?\s*(?:days?|d)\b)"
WEEKS_DAYS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(\d+)-?\s*(?:weeks?|wks?|w)(?:\W+(?:and\W+)?)?(\d+){_DAYS}",
        rf"(\d+)\s*\+\s*(\d)(?:\s*/\s*7)?{_WEEKS}",  # 32+5 weeks
        rf"(\d+)\s+(\d)\s*/\s*7{_WEEKS}",  # 32 5/7 weeks
    )
)
# Only where a pair is asked for: (32, 5), and weeks without days.
PAIR = re.compile(r"[(\[]?\s*['\"]?(\d{1,3})['\"]?\s*,\s*['\"]?(\d)['\"]?\s*[)\]]?")
SUM = re.compile(r"(?<![\d.+])(\d{1,2})\s*\+\s*([0-6])(?:\s*/\s*7)?(?![\d.+])")
WEEKS_ALONE = re.compile(rf"(\d+){_WEEKS}", re.IGNORECASE)


def _grade_date(response: str, answer: str, _: str) -> Grade:
    expected = _date(answer)
    if expected is None:
        raise ConfigError(f"answer: {answer!r} is not a date, as the date grader needs; write it as YYYY-MM-DD")
    found = extract_answer(response)
    text = _plain(after_thoughts(response) if found is None else found)
    value = _date(text)
    if value is None and len(expected) == 2:
        value = _pair(text, found is not None)
    if value is None:
        return Grade(False, "no_answer")
    return Grade(value == expected, "ok")


def _plain(text: str) -> str:
    text = re.sub(r"\\(?:text|mathrm|textbf)\s*\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\\[,;: ]|\*\*|[$~]", " ", text.replace("\N{EN DASH}", "-"))


def _pair(text: str, announced: bool) -> tuple[int, ...] | None:
    """A bare pair of weeks and days, where a pair is expected."""
    pairs = [PAIR.fullmatch(text.strip())] if announced else list(PAIR.finditer(text))
    if pairs and pairs[-1] is not None:
        return int(pairs[-1][1]), int(pairs[-1][2])
    sums = list(SUM.finditer(text))
    if sums:
        return int(sums[-1][1]), int(sums[-1][2])
    weeks = list(WEEKS_ALONE.finditer(text))
    return (int(weeks[-1][1]), 0) if weeks else None


def _date(text: str) -> tuple[int, ...] | None:
    """The last date in a text as (year, month, day), numeric dates without a leading year read as month/day/year, as
    day/month/year where only that is a date; or (weeks, days)."""
    found: list[tuple[int, tuple[int, ...]]] = []
    for pattern, order in DATES:
        for match in pattern.finditer(text):
            year, month, day = (match.groups()[i] for i in order)
            if not month.isdigit():
                name = month[:3].lower()
                if name not in MONTHS:
                    continue
                month = str(MONTHS.index(name) + 1)
            elif pattern is US_DATE and int(month) > 12 >= int(day):
                month, day = day, month
            if len(year) == 2:
                year = f"20{year}"
            try:
                date_type(int(year), int(month), int(day))
            except ValueError:
                continue  # there is no such day
            found.append((match.start(), (int(year), int(month), int(day))))
    for pattern in WEEKS_DAYS:
        found += [(match.start(), (int(match[1]), int(match[2]))) for match in pattern.finditer(text)]
    return max(found)[1] if found else None


date = Grader("date", _grade_date, version=2)
