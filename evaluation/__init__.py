"""Evaluation of checkpoints: generation, grading, statistics, diversity."""

from importlib import import_module

_HOMES = {
    "pass_at_k": "evaluation.statistics",
    "bootstrap": "evaluation.statistics",
    "paired_comparison": "evaluation.statistics",
    "holm": "evaluation.statistics",
    "grade": "evaluation.grading",
    "grade_answer": "evaluation.grading",
    "Grade": "evaluation.grading",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'evaluation' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
