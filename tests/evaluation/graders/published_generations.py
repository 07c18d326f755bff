"""Our verdicts on published generations beside the official ones, with a line for every one that differs.

    PYTHONPATH=. python tests/evaluation/graders/published_generations.py FOLDER

FOLDER holds `gsm8k_example_model_solutions.jsonl` (openai/grade-school-math, four models) and `math_cot_100.jsonl`
(QwenLM/Qwen2.5-Math, evaluation: eight responses a problem), as they are published.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterator

from evaluation.grading import GradingPool

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
# Loaded machines are slow; no answer needs a second on a free one.
TIMEOUT_SECONDS = 120.0
Row = tuple[str, str, str, bool]  # response, reference, grader, official verdict


def gsm8k(row: dict) -> Iterator[Row]:
    """A problem's solutions: what is graded is the text behind "A:"."""
    for model in MODELS:
        found = row[model]["solution"].rpartition("A:")[2].strip()
        reference = row["ground_truth"].rpartition("A:")[2].strip()
        yield f"The answer is {found}" if found else "", reference, "math", row[model]["is_correct"]


def qwen(row: dict) -> Iterator[Row]:
    """A problem's responses, against `gt`: the reference as the official grader was given it."""
    for response, score in zip(row["response"], row["score"], strict=True):
        for grader in ("boxed", "math"):
            yield response, row["gt"], grader, score


FILES = {"gsm8k_example_model_solutions.jsonl": gsm8k, "math_cot_100.jsonl": qwen}


def compare(rows: list[Row]) -> list[str]:
    """A line for each verdict of ours that is not the official one."""
    with GradingPool(workers=2, timeout_seconds=TIMEOUT_SECONDS) as pool:
        found = pool.grade_many([row[:3] for row in rows])
    return [
        f"{grader}: {response[-60:]!r} against {reference!r}: ours {grade.correct} ({grade.status}), theirs {official}"
        for (response, reference, grader, official), grade in zip(rows, found, strict=True)
        if grade.correct != official or grade.failed
    ]


def main(folder: pathlib.Path) -> None:
    """Print what differs and how many verdicts agree, for each file."""
    for name, reader in FILES.items():
        rows = [row for line in (folder / name).read_text().splitlines() for row in reader(json.loads(line))]
        for grader in sorted({row[2] for row in rows}):
            chosen = [row for row in rows if row[2] == grader]
            differing = compare(chosen)
            print(*differing, sep="\n")
            print(f"{name}, {grader}: {len(chosen) - len(differing)} of {len(chosen)} official verdicts")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
