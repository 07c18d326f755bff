"""MATH's training split by level: problems for reinforcement learning, SED-SFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from data_prep.sources._published import Copy, PublishedSource, boxed
from evaluation.benchmarks.mathematics import BOXED


class MathLevels(Copy):
    """Settings of source math_levels."""

    levels: list[int] = Field([1, 2, 3, 4, 5], description="levels of difficulty that are taken")


class MathLevelsSource(PublishedSource):
    name = "math_levels"
    section = MathLevels
    reference = "SED-SFT, 4.1: Math (Level 1) training split, 5,000 prompts before the filter"
    hub = "DigitalLearningGmbH/MATH-lighteval"  # SED-SFT, footnote 5; unverified: commit
    files = "data/train-*.parquet"
    columns: ClassVar = {"problem": str, "level": str, "solution": str}
    part = "rl"
    rows, tokens = 7_500, 250

    def convert(self, row: Mapping[str, Any], section: Any) -> dict[str, Any] | None:
        if row["level"] not in [f"Level {level}" for level in section.levels]:
            return None
        return {"prompt": f"{row['problem']}\n{BOXED}", "answer": boxed(row["solution"]), "grader": "math"}

    def rough_rows(self, section: Any, part: str) -> float | None:
        rows = super().rough_rows(section, part)
        return None if rows is None else rows * len(section.levels) / 5


SOURCE = MathLevelsSource()
