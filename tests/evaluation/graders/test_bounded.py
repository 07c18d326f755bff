"""Answers that could keep a grader busy for hours, or that Python refuses to read: each has its verdict in time."""

import time

import pytest

from evaluation.grading import Grade, GradingPool, grade_answer

LIMIT_SECONDS = 2.0
HUGE = {
    "tower": "9^{9^{9^{9}}}",
    "plain tower": "9^9^9^9",
    "factorial": "(10^9)!",
    "factorial of a factorial": "((10^9)!)!",
    "exponent": "1e999999999",
    "binomial": "\\binom{10^9}{10^8}",
    "digits beyond what an int may be read from": "9" * 5_000,
    "a million digits": "1" + "0" * 1_000_000,
    "decimal": "0." + "3" * 5_000,
    "period": "0.\\overline{" + "9" * 3_000 + "}",
    "brackets": "(" * 3_000 + "1" + ")" * 3_000,
    "braces": "{" * 3_000 + "1" + "}" * 3_000,
    "roots": "\\sqrt{" * 500 + "2" + "}" * 500,
    "fractions": "\\frac{1}{" * 400 + "2" + "}" * 400,
    "boxes that do not close": "\\boxed{" * 500,
    "list": "1," * 5_000,
    "signs": "-" * 5_000 + "1",
    "both signs": "\\pm 1" * 12,
    "polynomial": "(x+1)^{1000000}",
    "sum": "\\sum_{k=1}^{10^9} \\frac{1}{k^2}",
    "product": "\\prod_{k=1}^{10^8} k",
    "sine": "\\sin(10^{10^{10}})",
    "exponentials": "e^{e^{e^{e^e}}}",
    "inequality": "x^{11}-x+1>0",
}


@pytest.mark.timeout(600)
def test_every_answer_has_its_verdict_within_the_limit():
    triples = [
        (f"\\boxed{{{text}}}", reference, grader)
        for text in HUGE.values()
        for grader, reference in (
            ("math", "7"),
            ("math", "\\sqrt{2}"),
            ("math", "x+1"),
            ("numeric", "7"),
            ("choice", "A"),
        )
    ]
    start = time.monotonic()
    with GradingPool(workers=2, timeout_seconds=LIMIT_SECONDS) as pool:
        found = pool.grade_many(triples)
    assert time.monotonic() - start < LIMIT_SECONDS * len(triples)
    assert not any(grade.correct for grade in found)
    assert {grade.status for grade in found} <= {"ok", "no_answer", "timeout"}


@pytest.mark.parametrize("text", [HUGE[name] for name in ("tower", "factorial", "binomial", "sine")])
def test_a_number_too_long_to_write_out_is_itself_and_no_other(text):
    assert grade_answer(f"\\boxed{{{text}}}", text, "boxed") == Grade(True, "ok")
    assert grade_answer(f"\\boxed{{{text}+1}}", text, "boxed").correct is False


@pytest.mark.parametrize("grader", ["numeric", "math", "boxed"])
def test_digits_that_python_refuses_to_read_are_no_error(grader):
    assert grade_answer("\\boxed{" + "9" * 5_000 + "}", "7", grader).status in ("ok", "no_answer")
