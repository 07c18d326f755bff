"""Evaluation of checkpoints: generation, grading, statistics, diversity, analyses."""

from common.lazy import attributes

__all__, __getattr__ = attributes(
    __name__,
    {
        "pass_at_k": "evaluation.statistics",
        "bootstrap": "evaluation.statistics",
        "paired": "evaluation.statistics",
        "share": "evaluation.statistics",
        "over_seeds": "evaluation.statistics",
        "spearman": "evaluation.statistics",
        "holm": "evaluation.statistics",
        "grade": "evaluation.grading",
        "grade_answer": "evaluation.grading",
        "Grade": "evaluation.graders",
    },
)
