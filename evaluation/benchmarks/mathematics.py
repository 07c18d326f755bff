"""Mathematics: competitions, school and college."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from evaluation.benchmarks._files import Row
from evaluation.benchmarks.contract import Messages, Published, user
from evaluation.graders.extraction import extract_boxed

QWEN_MATH = "https://github.com/QwenLM/Qwen2.5-Math"
QWEN_MATH_REVISION = "a45202bd16f1ec06f433442dc1152d0074773465"
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."


def _math(question: str, answer: Callable[[Row], str]) -> Callable[[Row], tuple[Messages, str]]:
    return lambda row: (user(f"{row[question]}\n{BOXED}"), answer(row))


def _minerva(row: Row) -> tuple[Messages, str]:
    boxed = extract_boxed(row["solution"])
    if not boxed:
        raise ValueError("the solution has no boxed answer")
    return user(f"{row['problem']}\n{BOXED}"), boxed[-1]


def _olympiad(row: Row) -> tuple[Messages, str]:
    # Several answers are one list; the comparison takes them in any order.
    answers = [answer.replace("$", "").strip() for answer in row["final_answer"]]
    return user(f"{row['question']}\n{BOXED}"), ", ".join(answers)


def _whole_number(value: Any) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


def _qwen(name: str, columns: dict, problem, identity: str | None = None) -> Published:
    address = f"{QWEN_MATH}/blob/main/evaluation/data/{name}/test.jsonl"
    return Published(name, address, QWEN_MATH_REVISION, columns, problem, "math", identity)


math500 = Published(
    "math500",
    "HuggingFaceH4/MATH-500:test.jsonl",
    "ff5b20257d8185524591543f8ff5993951537bb8",
    {"problem": str, "answer": str},
    _math("problem", lambda row: row["answer"]),
    "math",
    "unique_id",
)
minerva_math = _qwen("minerva_math", {"problem": str, "solution": str}, _minerva, "idx")
olympiadbench = _qwen(
    "olympiadbench",
    {"question": str, "final_answer": list},
    _olympiad,
    "id",
)
aime24 = _qwen(
    "aime24",
    {"problem": str, "answer": str},
    _math("problem", lambda row: row["answer"]),
    "id",
)
aime25 = Published(
    "aime25",
    "math-ai/aime25:test.jsonl",
    "563bb8404243c5f09de6ec262f2db674fe5bce9b",
    {"problem": str, "answer": str},
    _math("problem", lambda row: row["answer"]),
    "math",
    "id",
)
# A collection of one's own: the competitions of 2023 to 2026, two of 15 problems a year.
aime23_26 = replace(
    aime25,
    name="aime23_26",
    file="your own aime23_26.jsonl: the 120 problems of AIME I and II, 2023 to 2026",
    revision="columns as in aime25",
)
amc23 = _qwen(
    "amc23",
    {"problem": str, "answer": (float, int)},
    _math("problem", lambda row: _whole_number(row["answer"])),
    "id",
)
gsm8k = _qwen(
    "gsm8k",
    {"question": str, "answer": str},
    _math("question", lambda row: row["answer"].rpartition("####")[2].strip().replace(",", "")),
    "idx",
)
gaokao2023en = _qwen(
    "gaokao2023en",
    {"question": str, "answer": str},
    _math("question", lambda row: row["answer"]),
)
college_math = _qwen(
    "college_math",
    {"question": str, "answer": str},
    _math("question", lambda row: row["answer"]),
)
