"""A grader by its name, in this process: `pool` runs the same bounded in time."""

from __future__ import annotations

from evaluation.graders import Grade, Grader, parse


def grade_answer(response: str, answer: str, grader: str = "math", *, run_generated_code: bool = False) -> Grade:
    """Judge `response` against the reference `answer`, in this process and without a time limit.

    grader: of `evaluation.graders`, perhaps with an argument, or one of one's own: `boxed` (mathematical equality of
    the boxed answer; no box, no answer), `math` (the same, but an unboxed final answer counts), `exact` (text),
    `numeric` or `numeric:<relative tolerance>`, `date` (also gestational "(weeks, days)" pairs), `choice` (one letter),
    `range` (a number within the reference's "[low, high]"), `code` (the program passes the reference's tests in the
    sandbox; only with run_generated_code), and more. Never raises on a response; an exception of the grader is the
    status `error`. Raises ConfigError for an unknown grader, a reference that its grader cannot read, or code without
    run_generated_code.
    """
    found, argument = parse(grader)
    return found.grade(response, answer, argument, run_generated_code=run_generated_code)


def check_grader(grader: str) -> tuple[Grader, str]:
    """The grader and the argument behind a row's `grader`. Raises ConfigError for an unknown one or a bad argument."""
    return parse(grader)
