"""Grading by a grader's name: in this process (`grade_answer`), or in a pool of others (`grade`, `GradingPool`)."""

from common.lazy import attributes

__all__, __getattr__ = attributes(
    __name__,
    {
        "Grade": "evaluation.graders.contract",
        "extract_answer": "evaluation.graders.extraction",
        "extract_boxed": "evaluation.graders.extraction",
        "grade_answer": "evaluation.grading.answers",
        "check_grader": "evaluation.grading.answers",
        "GradingPool": "evaluation.grading.pool",
        "Outcome": "evaluation.grading.pool",
        "default_pool": "evaluation.grading.pool",
        "grade": "evaluation.grading.pool",
    },
)
