"""Answer graders: pure functions (`grade_answer`) and the same behind a subprocess pool (`grade`, `GradingPool`)."""

from importlib import import_module

_HOMES = {
    "Grade": "evaluation.grading.answers",
    "extract_answer": "evaluation.grading.answers",
    "extract_boxed": "evaluation.grading.answers",
    "grade_answer": "evaluation.grading.answers",
    "check_grader": "evaluation.grading.answers",
    "GradingPool": "evaluation.grading.pool",
    "Outcome": "evaluation.grading.pool",
    "default_pool": "evaluation.grading.pool",
    "grade": "evaluation.grading.pool",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'evaluation.grading' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
