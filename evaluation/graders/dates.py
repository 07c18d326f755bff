"""Dates, however written, and gestational "(weeks, days)" pairs."""

from __future__ import annotations

import re

from common.errors import ConfigError
from evaluation.graders.contract import Grade, Grader
from evaluation.graders.extraction import extract_answer

MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
ISO_DATE = re.compile(r"\b(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})\b")
US_DATE = re.compile(r"\b(\d{1,2})[-/.](\d{1,2})[-/.](\d{4})\b")
MONTH_FIRST = re.compile(r"\b([A-Za-z]{3,9})\.?\s+(\d{1,2})(?:st|nd|rd|th)?,?\s+(\d{4})\b")
DAY_FIRST = re.compile(r"\b(\d{1,2})(?:st|nd|rd|th)?\s+(?:of\s+)?([A-Za-z]{3,9})\.?,?\s+(\d{4})\b")
# Each pattern with the positions of year, month and day among its groups.
DATES = ((ISO_DATE, (0, 1, 2)), (US_DATE, (2, 0, 1)), (MONTH_FIRST, (2, 0, 1)), (DAY_FIRST, (2, 1, 0)))
WEEKS_DAYS = re.compile(r"(\d+)\s*(?:weeks?)\W+(?:and\W+)?(\d+)\s*(?:days?)")


def _grade_date(response: str, answer: str, _: str) -> Grade:
    expected = _date(answer)
    if expected is None:
        raise ConfigError(f"answer: {answer!r} is not a date, as the date grader needs; write it as YYYY-MM-DD")
    found = extract_answer(response)
    value = _date(found if found is not None else response)
    if value is None:
        return Grade(False, "no_answer")
    return Grade(value == expected, "ok")


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


date = Grader("date", _grade_date)
