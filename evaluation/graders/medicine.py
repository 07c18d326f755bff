"""MedCalc-Bench, whose references are of two kinds."""

from __future__ import annotations

from evaluation.graders.contract import Grade, Grader
from evaluation.graders.dates import date
from evaluation.graders.numbers import within


def _grade_medcalc(response: str, answer: str, _: str) -> Grade:
    """A reference "[low, high]" is judged as a range, any other as a date or a "(weeks, days)" pair."""
    return (within if answer.lstrip().startswith("[") else date).grade(response, answer)


medcalc = Grader("medcalc", _grade_medcalc, version=2)
