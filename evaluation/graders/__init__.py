"""The one registry of graders: `names()`, `load(name)`."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import ConfigError
from evaluation.grading.answers import GRADERS, Grade, grade_answer


@dataclass(frozen=True)
class Grader:
    """Judges a response against a reference answer."""

    name: str

    def grade(self, response: str, answer: str, argument: str = "") -> Grade:
        return grade_answer(response, answer, f"{self.name}:{argument}" if argument else self.name)


def names() -> list[str]:
    return sorted(GRADERS)


def load(name: str) -> Grader:
    """Raises ConfigError for an unknown name."""
    if name not in GRADERS:
        raise ConfigError(f"unknown grader {name!r}; allowed: {', '.join(names())}")
    return Grader(name)
